"""Give a reader of files damaged ones until it does what it must not, or for as long as one likes.

    python scripts/fuzz.py gguf --runs 1000000
    python scripts/fuzz.py folder-gptq --seconds 600 --corpus ~/corpus/gptq
    python scripts/fuzz.py --list

Nothing but a result or one of qformats' own errors is allowed, within 1 s of processor time and 256 MB, without
running code, and without touching a file outside of the input's folder. Inputs that led to anything else are kept, one
for each line of the program that they came through; put into tests/fuzzing/regressions/TARGET they are tests.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT), str(ROOT / "plugins")]
os.environ.update(
    OMP_NUM_THREADS="1", RAYON_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1"
)

STUCK = 120
"""Seconds without an execution after which a worker is stopped: what does not answer to Python's timer hangs."""
_FOREVER = 2**40


def main() -> int:
    """Run a target in a worker, and another one where that ends early."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", nargs="?", help="what reads the inputs")
    parser.add_argument("--list", action="store_true", help="name all targets")
    parser.add_argument("--runs", type=int, default=0, help="executions; no end without it and --seconds")
    parser.add_argument("--seconds", type=float, default=0, help="time")
    parser.add_argument(
        "--corpus", type=Path, help="inputs that reached something new, kept for the next run"
    )
    parser.add_argument(
        "--engine", choices=["atheris", "hypothesis", "random"], help="by default the first that is installed"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers")
    parser.add_argument(
        "--faults", type=Path, default=Path("fuzz-faults"), help="where faulty inputs are kept"
    )
    parser.add_argument("--replay", type=Path, help="execute one kept input, and tell what comes of it")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.worker:
        return work(told)
    if told.list or not told.target:
        from fuzzing.targets.every import TARGETS

        print(*TARGETS, sep="\n")
        return 0
    return replay(told) if told.replay else watch(told)


def replay(told: argparse.Namespace) -> int:
    """Execute one input."""
    from fuzzing import corpus
    from fuzzing.runner import Runner, sandbox
    from fuzzing.targets.every import TARGETS

    with sandbox() as place:
        runner = Runner(TARGETS[told.target], place)
        with runner.running():
            fault = runner.execute(corpus.read(told.replay))
    print(f"{fault.kind}: {fault.place}\n{fault.text}" if fault else "no fault")
    return fault is not None


def watch(told: argparse.Namespace) -> int:
    """Start workers until all is done; gives 1 if there was a fault."""
    from fuzzing import corpus
    from fuzzing.engines import usable
    from fuzzing.progress import Progress
    from fuzzing.runner import sandbox

    engine = told.engine or usable()[0]
    began, runs, seed, total = time.monotonic(), told.runs or _FOREVER, told.seed, [0, 0, 0, 0]
    until = began + told.seconds if told.seconds else float("inf")
    with sandbox() as place, tempfile.TemporaryDirectory() as kept:
        while total[0] < runs and time.monotonic() < until:
            state = place.root / f"state-{seed}"
            progress = Progress(state)
            left = ["--seconds", f"{until - time.monotonic():.0f}"] if told.seconds else []
            command = [
                *(sys.executable, __file__, told.target, "--worker", str(state), "--engine", engine),
                *("--runs", str(runs - total[0]), "--seed", str(seed), "--faults", str(told.faults)),
                *("--corpus", str(told.corpus or kept), *left),
            ]
            code = _ended(command, progress)
            counts = progress.counts
            total = [a + b for a, b in zip(total, counts, strict=True)]
            if code not in (0, None) or (code is None):
                file = corpus.write(
                    told.faults / told.target, progress.held, "hang" if code is None else "crash"
                )
                print(f"the worker {'hung' if code is None else f'ended with {code}'}: {file}", flush=True)
                total[3] += 1
            seed += 1
            if code == 0 and not counts[0]:
                break
    took = time.monotonic() - began
    print(
        f"{told.target}: {total[0]:,} executions by {engine} from seed {told.seed} in {took:,.0f} s "
        f"({total[0] / max(took, 1e-9):,.0f}/s); {total[1]:,} results, {total[2]:,} refusals, {total[3]:,} faults",
        flush=True,
    )
    return int(total[3] > 0)


def _ended(command: list[str], progress: object) -> int | None:
    """Exit code of a worker; None if it stood still and was stopped."""
    with subprocess.Popen(command) as process:
        last, since = -1, time.monotonic()
        try:
            while process.poll() is None:
                time.sleep(0.25)
                executions = progress.counts[0]  # type: ignore[attr-defined]
                if executions != last:
                    last, since = executions, time.monotonic()
                elif time.monotonic() - since > STUCK:
                    process.kill()
                    return None
        except BaseException:
            process.kill()
            raise
    return process.returncode


def work(told: argparse.Namespace) -> int:
    """Execute inputs in this process."""
    from fuzzing.engines import ENGINES, instrumented

    context, slower = instrumented(told.engine)
    # It names every module that it instruments.
    with contextlib.redirect_stderr(io.StringIO()), context:
        from fuzzing import corpus
        from fuzzing.progress import Progress
        from fuzzing.runner import Runner, seeds_of
        from fuzzing.targets.every import TARGETS
        from fuzzing.watch import CPU_SECONDS, Place

    target, progress = TARGETS[told.target], Progress(told.worker)
    seen: dict[str, int] = {}

    class Telling(Runner):
        def execute(self, data: bytes):
            progress.begin(data)
            fault = super().execute(data)
            progress.count(self.executions, self.results, self.refusals, sum(seen.values()))
            return fault

    def tell(data: bytes, fault) -> None:
        key = f"{fault.kind} {fault.place}"
        seen[key] = seen.get(key, 0) + 1
        if seen[key] == 1:
            file = corpus.write(told.faults / told.target, data, fault.kind)
            print(f"{told.target}: {key}: {file}\n{fault.text}", flush=True)
        progress.count(runner.executions, runner.results, runner.refusals, sum(seen.values()))

    runner = Telling(target, Place(told.worker.parent), CPU_SECONDS * slower)
    until = time.monotonic() + told.seconds if told.seconds else float("inf")
    inputs = [*seeds_of(target), *corpus.load(told.corpus)]
    ENGINES[told.engine](runner, inputs, told.runs, until, told.seed, told.corpus, tell)
    return 0


if __name__ == "__main__":
    sys.exit(main())
