"""Open damaged models in every way there is: what comes out is our own error, or a result.

``cd tests && python -m robustness.fuzz ROUNDS [SEED [VICTIMS]]`` runs for longer than the test does.
"""

from __future__ import annotations

import contextlib
import io
import random
import re
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robustness import mutations, victims

import qformats
from qformats.errors import PluginError, QFormatsError

__all__ = ["WAYS", "attempt", "model_of"]

_PATIENCE = 20
"""Seconds after which an opening hangs."""


def model_of(folder: Path) -> Path:
    """What a user would give for a victim."""
    file = folder / "model.gguf"
    return file if file.exists() else folder


def _open(model: Path, out: Path) -> None:
    found = qformats.open(model)
    assert found.architecture is not None
    str(found.metadata)
    with contextlib.suppress(qformats.errors.UnsupportedModelError):
        str(found.config)


def _tokenizer(model: Path, out: Path) -> None:
    qformats.open(model).tokenizer_files()


def _tensors(model: Path, out: Path) -> None:
    for tensor in qformats.open(model).tensors.values():
        tensor.read()


def _export(format: str) -> Callable[[Path, Path], None]:
    def export(model: Path, out: Path) -> None:
        qformats.export(model, out, format=format, quantizer="rtn", workers=1, force=True)

    export.__name__ = format
    return export


def _command(*arguments: str) -> Callable[[Path, Path], None]:
    def command(model: Path, out: Path) -> None:
        code, told = run_program(*(str({"MODEL": model, "OUT": out}.get(each, each)) for each in arguments))
        assert code in (0, 2, 3, 4), (code, told)
        told = "".join(line for line in told.splitlines(True) if not line.startswith("qformats: warning"))
        # The program turns what a plugin raised into a sentence, too.
        assert not re.search("Traceback| raised ", told), told
        if code:
            assert told.startswith("qformats: "), told
            assert told.count("\n") == 1, told

    command.__name__ = " ".join(arguments)
    return command


def run_program(*arguments: str) -> tuple[int, str]:
    """Exit code and standard error of the command line, in this process; standard output must be UTF-8."""
    from qformats.cli import main

    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    argv, show, code = sys.argv, warnings.showwarning, 0
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    sys.argv = ["qformats", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv, warnings.showwarning = argv, show
        for number, handler in handlers.items():
            signal.signal(number, handler)
    out.flush()
    err.seek(0)
    return code, err.read()


WAYS: tuple[Callable[[Path, Path], None], ...] = (
    _open,
    _tokenizer,
    _tensors,
    *map(_export, ("gguf:q4_0", "gguf:f16", "dense:f32", "gptq:4bit-32g", "glm:int8")),
    _command("inspect", "MODEL", "--tensors"),
    _command("inspect", "MODEL", "--json"),
    _command("inspect", "MODEL", "--plan", "gguf:q4_0"),
    _command("export", "MODEL", "-f", "gguf:q8_0", "-o", "OUT", "--force"),
    _command("export", "MODEL", "-f", "bitsandbytes:nf4", "-o", "OUT", "--force", "--dry-run", "--json"),
)
"""Everything that reads a model."""


def attempt(way: Callable[[Path, Path], None], model: Path, out: Path) -> Exception | None:
    """Try one way; gives what came out that should not have."""

    def late(number: int, frame: Any) -> None:
        raise TimeoutError(f"more than {_PATIENCE} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(_PATIENCE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            way(model, out)
    except PluginError as error:
        return error
    except QFormatsError:
        return None
    except Exception as error:
        return error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return None


def _where(error: BaseException) -> str:
    """Last line of ours that an exception came through."""
    while error.__cause__ is not None and isinstance(error, PluginError):
        error = error.__cause__
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/tests/" not in f.filename]
    ours = [f for f in frames if "/qformats" in f.filename] or frames
    last = ours[-1] if ours else None
    return (
        f"{type(error).__name__} {last.filename.rpartition('/')[2]}:{last.lineno}"
        if last
        else repr(error)[:200]
    )


def main(rounds: int, seed: int, only: str = "") -> None:
    """Print each fault once, with the damage that led to it."""
    resource.setrlimit(resource.RLIMIT_AS, (24 << 30, 24 << 30))
    rng, seen = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        built = victims.build(folder / "good")
        built = {k: v for k, v in built.items() if not only or k in only.split(",")}
        for number in range(rounds):
            key = rng.choice(sorted(built))
            copied = victims.copy(built[key], folder / "bad")
            how = " & ".join(mutations.mutate(rng, copied) for _ in range(rng.choice((1, 1, 1, 2))))
            for way in rng.sample(WAYS, 3):
                fault = attempt(way, model_of(copied), folder / "out" / "model")
                if fault is not None:
                    place = _where(fault)
                    seen[place] += 1
                    if seen[place] == 1:
                        print(
                            f"[{number}] {key}: {how[:200]!r}\n   {way.__name__}: {place}: {str(fault)[:300]!r}",
                            flush=True,
                        )
    print(rounds, "rounds;", dict(seen.most_common()))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, *sys.argv[3:4])
