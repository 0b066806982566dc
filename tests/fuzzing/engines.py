"""Where inputs come from: chance, Hypothesis, or atheris, which follows what code an input reaches.

Each executes a number of inputs and gives every execution's fault to a function, which stops none of them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from fuzzing import corpus

if TYPE_CHECKING:
    from fuzzing.runner import Runner

__all__ = ["ENGINES", "instrumented", "usable"]

_BATCH = 2000
"""Examples of Hypothesis between two looks at the clock."""
_LONGEST = 1 << 20
"""Bytes of an input."""
_SLOWER = 8.0
"""Instruments make Python so much slower at most."""

Told = Callable[[bytes, Any], None]


def usable() -> list[str]:
    """Engines that can run here, the best first: atheris has wheels for some versions of Python only."""
    try:
        import atheris  # noqa: F401
    except ImportError:
        return ["hypothesis", "random"]
    return ["atheris", "hypothesis", "random"]


def instrumented(engine: str) -> Any:
    """A context in which what is imported tells the engine what it runs, and how much slower it may be."""
    import contextlib

    if engine != "atheris":
        return contextlib.nullcontext(), 1.0
    import atheris

    # Not the fuzzer itself, and no library: what an input reaches there is not ours to find.
    own = [f"qformats{end}" for end in ("", *(f"_{name}" for name in _PLUGINS))]
    return atheris.instrument_imports(include=own, enable_loader_override=False), _SLOWER


_PLUGINS = (
    *(
        "awq",
        "bitsandbytes",
        "compressed_tensors",
        "eetq",
        "fp8",
        "glm",
        "gguf",
        "gptq",
        "hqq",
        "mlx",
        "modelopt",
    ),
    *("quanto", "torchao"),
)


def _random(
    runner: Runner, inputs: list[bytes], runs: int, until: float, seed: int, folder: Path, told: Told
) -> None:
    from fuzzing.runner import Changes

    changes = Changes(runner.target, seed, inputs)
    with runner.running():
        for _ in range(runs):
            if time.monotonic() > until:
                return
            data, before = changes.next(), runner.results
            fault = runner.execute(data)
            if fault is not None:
                told(data, fault)
            elif runner.results > before:
                changes.keep(data)


def _hypothesis(
    runner: Runner, inputs: list[bytes], runs: int, until: float, seed: int, folder: Path, told: Told
) -> None:
    import hypothesis
    from hypothesis import strategies as st

    goal, batch = runner.executions + runs, 0
    with runner.running():
        while runner.executions < goal and time.monotonic() < until:
            count = min(_BATCH, goal - runner.executions)

            @hypothesis.seed(seed + batch)
            @hypothesis.settings(
                max_examples=count,
                database=None,
                deadline=None,
                phases=[hypothesis.Phase.generate],
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            @hypothesis.given(st.sampled_from(inputs), st.randoms(use_true_random=False))
            def one(data: bytes, rng: Random) -> None:
                if runner.executions < goal:
                    changed = runner.target.mutate(rng, data)
                    fault = runner.execute(changed)
                    if fault is not None:
                        told(changed, fault)

            one()
            batch += 1


def _atheris(
    runner: Runner, inputs: list[bytes], runs: int, until: float, seed: int, folder: Path, told: Told
) -> None:
    """Does not return: the library ends the process."""
    import atheris

    for data in inputs:
        corpus.write_plain(folder, data)

    def one(data: bytes) -> None:
        try:
            fault = runner.execute(data)
        except (ValueError, LookupError):
            # Not a bundle: libFuzzer has its own beginning, of no bytes or of one.
            return
        if fault is not None:
            told(data, fault)

    def mutate(data: bytes, longest: int, chosen: int) -> bytes:
        rng = Random(chosen)
        try:
            changed = runner.target.mutate(rng, data)
        except (ValueError, LookupError):
            changed = rng.choice(inputs)
        return changed if len(changed) <= longest else data

    options = [
        f"-runs={runs}",
        f"-seed={seed % 2**31 or 1}",
        f"-max_len={_LONGEST}",
        "-rss_limit_mb=0",
        "-verbosity=0",
    ]
    if until < float("inf"):
        options.append(f"-max_total_time={max(1, int(until - time.monotonic()))}")
    atheris.Setup([sys.argv[0], *options, str(folder)], one, custom_mutator=mutate)
    with runner.running():
        atheris.Fuzz()


ENGINES: dict[str, Callable[[Runner, list[bytes], int, float, int, Path, Told], None]] = {
    "atheris": _atheris,
    "hypothesis": _hypothesis,
    "random": _random,
}
