"""Checksums of a source's files, taken right behind the conversion, which has just brought them into memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from qformats.interfaces.checkpoint import Checkpoint
from qformats.work.checksums import file_digest
from qformats.work.pool import threads

__all__ = ["SourceDigest", "names_of"]


def names_of(source: Checkpoint) -> dict[str, Path]:
    """Files of a model by names that do not tell where it lies: relative to its folder, or bare."""
    named: dict[str, Path] = {}
    for file in source.files:
        inside = source.path.is_dir() and file.is_relative_to(source.path)
        named[file.relative_to(source.path).as_posix() if inside else file.name] = file
    return named


class SourceDigest:
    """Reads the files of a model in threads of its own, no further than the conversion has come.

    So a model is read from the disk once, also where it is larger than memory. One thread in four cores: a single one
    fell 2 s behind a conversion of 16 GB on 16 cores.

    Parameters
    ----------
    source : Checkpoint
        The model.
    order : sequence of Path
        Files in the order in which the conversion reads them; the others come last.
    """

    def __init__(self, source: Checkpoint, order: Sequence[Path]) -> None:
        named = names_of(source)
        place = {file: number for number, file in enumerate(dict.fromkeys(order))}
        self._named = sorted(named.items(), key=lambda item: place.get(item[1], len(place)))
        self._sizes = [os.stat(file).st_size for _, file in self._named]
        self._found: dict[str, tuple[int, str]] = {}
        self._error: OSError | None = None
        self._allowed = self._done = 0
        self._wakes = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="qformats-source", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._allow(-1 if kind is not None else sum(self._sizes))
        self._thread.join()

    def reach(self, share: float) -> None:
        """The conversion has read this share of the model."""
        self._allow(int(share * sum(self._sizes)))

    def finish(self) -> Mapping[str, tuple[int, str]]:
        """Bytes and checksum of every file, by name.

        Raises
        ------
        OSError
            If a file could not be read.
        """
        self._allow(sum(self._sizes))
        self._thread.join()
        if self._error is not None:
            raise self._error
        return dict(sorted(self._found.items()))

    def _allow(self, nbytes: int) -> None:
        with self._wakes:
            # Negative: stop.
            self._allowed = -1 if nbytes < 0 or self._allowed < 0 else max(self._allowed, nbytes)
            self._wakes.notify()

    def _run(self) -> None:
        try:
            with ThreadPoolExecutor(max(1, threads(None) // 4), "qformats-source") as pool:
                for (name, file), size in zip(self._named, self._sizes, strict=True):
                    self._found[name] = size, file_digest(file, self._advance, pool)
        except _Stopped:
            return
        except OSError as error:
            self._error = error

    def _advance(self, nbytes: int) -> None:
        """Wait until more may be read than what has been begun."""
        self._done += nbytes
        with self._wakes:
            while 0 <= self._allowed < min(self._done, sum(self._sizes)):
                self._wakes.wait()
            if self._allowed < 0:
                raise _Stopped


class _Stopped(Exception):
    """The export has failed."""
