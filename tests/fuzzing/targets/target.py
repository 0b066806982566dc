"""What a target is: a reader, and the files that it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from fuzzing import bundles
from fuzzing.mutators.files import by_name, change_files, changed

from qformats.errors import PluginError, QFormatsError

__all__ = ["Target", "each"]


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes
    ----------
    name : str
        As it is typed, and the folder of its seeds.
    read : callable
        Reads what lies in the folder that it is given.
    file : str
        Name of the file that an input is; empty where an input is a bundle of files.
    weights : mapping of str to float
        How often the files of a bundle are changed, by the end of their names; 1 for those that are not listed.
    change : callable, optional
        Changes an input that is one file; by its name unless given.
    heavy : bool
        Milliseconds an execution: fewer of them in the suite.
    """

    name: str
    read: Callable[[Path], object]
    file: str = ""
    weights: Mapping[str, float] = field(default_factory=dict)
    change: Callable[[Random, bytes], bytes] | None = None
    heavy: bool = False

    def mutate(self, rng: Random, data: bytes) -> bytes:
        """Change an input in one to three places."""
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            if not self.file:
                data = change_files(rng, data, self.weights)
            else:
                data = changed(rng, data, self.change or by_name(self.file))
        return data

    def files(self, data: bytes) -> Mapping[str, bytes]:
        """What an input puts into the folder."""
        return {self.file: data} if self.file else bundles.unpack(data)


def each(*steps: Callable[[], object]) -> None:
    """Take all steps, also those behind one that refuses; the first refusal is raised at the end."""
    first: QFormatsError | None = None
    for step in steps:
        try:
            step()
        except PluginError:
            raise
        except QFormatsError as error:
            first = first or error
    if first is not None:
        raise first
