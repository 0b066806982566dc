"""What a worker of a cluster does: a part of the slices, or of the checksums."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qformats.errors import OutputError, QFormatsError
from qformats.exporting.engines.rebuilt import Told
from qformats.exporting.fill import OutputFiles, Slice, convert, room_for, weights_of
from qformats.exporting.journal import LOG, Span, Written
from qformats.exporting.plan import Plan
from qformats.exporting.selfcheck import SelfCheck
from qformats.work.checksums import PIECE, digest
from qformats.work.pool import bounded

__all__ = ["Outcome", "compare", "digests", "write"]

_KEPT = 2
"""Plans that a process keeps for the parts to come."""


@dataclass(frozen=True)
class Outcome:
    """What came of a part.

    Attributes
    ----------
    node : str
        The machine.
    result : object
        What was asked for.
    error : QFormatsError or None
        What is wrong with the input, the target or the machine: trying again would not help.
    """

    node: str
    result: Any = None
    error: QFormatsError | None = None


_plans: dict[str, tuple[Plan, list[Slice], SelfCheck]] = {}


def _plan(told: Told) -> tuple[Plan, list[Slice], SelfCheck]:
    """The plan, made once in this process."""
    if told.identity not in _plans:
        made = (*told.plan(), SelfCheck())
        while len(_plans) >= _KEPT:
            del _plans[next(iter(_plans))]
        _plans[told.identity] = made
    return _plans[told.identity]


class OwnedFiles(OutputFiles):
    """Some of the partial files, which are there already; see :class:`~qformats.exporting.fill.OutputFiles`.

    Parameters
    ----------
    plan : Plan
        Says which files there are.
    folder : Path
        Where they are.
    owned : sequence of int
        Those that this process may write.
    opening : bytes
        First line of the journal that they belong to. The export that has asked for them may have been killed, and
        another one have begun in its place, with files of the same names and sizes.
    """

    def __init__(self, plan: Plan, folder: Path, owned: Sequence[int], opening: bytes) -> None:
        self._owned, self._log, self._opening = owned, folder.with_name(LOG), opening
        super().__init__(plan, folder)

    def _create(self) -> None:
        self._handles = [-1] * len(self.paths)
        for number in self._owned:
            self._handles[number] = os.open(self.paths[number], os.O_RDWR | os.O_CLOEXEC)
            if os.fstat(self._handles[number]).st_size != self.plan.layout.files[number].size:
                raise OSError(errno.ESTALE, f"{self.paths[number].name} is not the file that was made for it")
        # After they are open: what is made later for another export has other files.
        with self._log.open("rb") as log:
            if log.readline().rstrip(b"\n") != self._opening:
                raise OSError(errno.ESTALE, "the export that asked for it has ended")

    def _failure(self, error: OSError) -> OutputError:
        if error.errno not in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ESTALE):
            return super()._failure(error)
        found = f"the node {socket.gethostname()} cannot write it ({error.strerror or error})"
        hint = "It must lie on a file system that every node mounts at the same place, for the same user"
        return OutputError(self.plan.target, found, hint)

    def sync(self) -> None:
        """Wait until everything is on the disk, so that it survives this machine."""
        try:
            for number in self._owned:
                os.fsync(self._handles[number])
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Close those that are open."""
        while self._handles:
            handle = self._handles.pop()
            if handle >= 0:
                os.close(handle)


def _told(work: Callable[[], Any]) -> Outcome:
    """The result, or the error as a value: a cluster wraps what is raised, and tries again."""
    try:
        return Outcome(socket.gethostname(), work())
    except QFormatsError as error:
        return Outcome(socket.gethostname(), error=error)


def write(
    told: Told, folder: Path, opening: bytes, owned: Sequence[int], wanted: Sequence[int], workers: int
) -> Outcome:
    """Convert slices and write them; gives ``(index, Written)`` of each, with its bytes on the disk.

    Parameters
    ----------
    told : Told
        The plan.
    folder : Path
        Where the partial files are.
    opening : bytes
        First line of their journal.
    owned : sequence of int
        Files that the slices go into.
    wanted : sequence of int
        Indices of the slices.
    workers : int
        Threads.
    """

    def work() -> list[tuple[int, Written]]:
        plan, slices, check = _plan(told)
        files = OwnedFiles(plan, folder, owned, opening)
        try:
            with bounded(
                lambda piece: convert(plan, piece, files, check),
                [slices[index] for index in wanted],
                workers,
                weight=lambda piece: weights_of(plan, piece),
                limit=room_for([weights_of(plan, slices[index]) for index in wanted], workers, 1),
            ) as written:
                done = [(piece.index, each) for piece, each in written]
            files.sync()
        finally:
            files.close()
        return done

    return _told(work)


def digests(file: Path, first: int, count: int) -> Outcome:
    """Checksums of `count` pieces of a file, from piece `first` on.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(handle).st_size
        starts = [number * PIECE for number in range(first, first + count)]
        found = [digest(handle, start, min(PIECE, size - start)) for start in starts]
    finally:
        os.close(handle)
    return Outcome(socket.gethostname(), found)


def compare(file: Path, spans: Sequence[Span]) -> Outcome:
    """Whether each span of a file has its checksum.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = [digest(handle, span.offset, span.nbytes) == span.digest for span in spans]
    finally:
        os.close(handle)
    return Outcome(socket.gethostname(), found)
