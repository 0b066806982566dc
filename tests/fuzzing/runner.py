"""Runs a target in this process: inputs into the folder, the reader over them, and what came of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from fuzzing import bundles, corpus
from fuzzing.targets.target import Target
from fuzzing.watch import CPU_SECONDS, Fault, Place, Watch

__all__ = ["Changes", "Runner", "sandbox", "seeds_of"]

_MEMORY = Path("/dev/shm")
_FROM_SEED = 0.5
"""Share of inputs that are made of a seed; the others are made of one that was made before."""
_KEPT = 400
"""Changed inputs that are changed again, at most."""


@contextmanager
def sandbox() -> Iterator[Place]:
    """A folder for one process, in memory where there is such a file system; removed afterwards."""
    home = str(_MEMORY) if _MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="qformats-fuzz-", dir=home) as name:
        place = Place(Path(name))
        place.make()
        yield place


def seeds_of(target: Target) -> list[bytes]:
    """Seeds, and what once was a fault."""
    return corpus.load(corpus.SEEDS / target.name, corpus.REGRESSIONS / target.name)


@dataclass
class Runner:
    """One target in one place.

    Attributes
    ----------
    executions, results, refusals : int
        Inputs so far; those that were read, and those that were refused with one of our own errors.
    """

    target: Target
    place: Place
    cpu: float = CPU_SECONDS
    executions: int = 0
    results: int = 0
    refusals: int = 0
    _there: set[str] = field(default_factory=set)
    _watch: Watch = field(init=False)

    def __post_init__(self) -> None:
        self._watch = Watch(self.place, self.cpu)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around all executions. Seeds are read first, so that what they import is there."""
        for data in seeds_of(self.target):
            self._put(data)
            try:
                self.target.read(self.place.inside)
            except Exception:
                # Only for what it loads: what comes of a seed is judged where it is executed.
                continue
        with self._watch.settled():
            yield

    def _put(self, data: bytes) -> None:
        self._there = bundles.place(self.target.files(data), self.place.inside, self._there)

    def execute(self, data: bytes) -> Fault | None:
        """Read one input."""
        self._put(data)
        outcome = self._watch.run(self.target.read)
        self.executions += 1
        if isinstance(outcome, Fault):
            return outcome
        if outcome:
            self.results += 1
        else:
            self.refusals += 1
        return None


class Changes:
    """Changed inputs without end: of seeds, and of those that were read and are changed again.

    Parameters
    ----------
    target : Target
        Knows how to change them.
    seed : int
        Of the random numbers.
    inputs : list of bytes
        To begin with.
    """

    def __init__(self, target: Target, seed: int, inputs: list[bytes]) -> None:
        self._target, self._rng, self._inputs, self._kept = target, Random(seed), inputs, list[bytes]()

    def next(self) -> bytes:
        """One more."""
        old = self._inputs if not self._kept or self._rng.random() < _FROM_SEED else self._kept
        return self._target.mutate(self._rng, self._rng.choice(old))

    def keep(self, data: bytes) -> None:
        """Remember one that is still a model, though another one than the seed."""
        if len(self._kept) < _KEPT:
            self._kept.append(data)
        else:
            self._kept[self._rng.randrange(_KEPT)] = data
