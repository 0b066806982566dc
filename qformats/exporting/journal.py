"""The journal of an export: which slices are written, and their checksums.

It lives beside the partial output. A killed export finds it again and goes on; a finished one removes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from qformats.errors import OutputError, spelled
from qformats.exporting.transcode import Measure
from qformats.work.exchanging import exchange
from qformats.work.made import MadeFolders
from qformats.work.ownership import is_ours, open_private, own_folder, token
from qformats.work.targets import hidden_beside

__all__ = ["Journal", "Span", "Written", "finish_or_undo", "sync_folder", "unwritable"]

SUFFIX = ".qformats-partial"
LOG = "journal.jsonl"
REPLACED = "replaced"
"""Where the old output waits until the new one is in place."""
_NOT_RESTORED = "Move it back, or elsewhere, then export again"


@dataclass(frozen=True)
class Span:
    """A range of one output file and the checksum of its bytes.

    Attributes
    ----------
    file : int
        Index into the layout's files.
    offset, nbytes : int
        Place in the file.
    digest : str
        XXH3 of the bytes, 128 bits, hexadecimal.
    """

    file: int
    offset: int
    nbytes: int
    digest: str


@dataclass(frozen=True)
class Written:
    """A written slice: where its bytes are, how its values changed if that was measured, and rows that became zeros."""

    spans: list[Span]
    measure: Measure | None = None
    vanished: int = 0


class Journal:
    """Partial output of one export and the record of what it holds.

    Parameters
    ----------
    target : Path
        Final file or folder; the partial output lies beside it, on the same file system.
    identity : str or None
        Fingerprint of the plan. A journal with another one is discarded. None only to inspect what exists.
    name : str, optional
        What the partial output is named after, if not the target.

    Raises
    ------
    OutputError
        If the place cannot be written, or another process is writing the same target.
    """

    def __init__(self, target: Path, identity: str | None, name: str = "") -> None:
        self.target = target
        self.folder = _folder(target, name)
        self.files = self.folder / "files"
        self._replaced = self.folder / REPLACED
        self._moves: list[tuple[Path, Path]] = []
        self._new: tuple[int, int] | None = None
        self.done: dict[int, Written] = {}
        self._log = -1
        self._strange = False
        self._made = MadeFolders()
        try:
            self._made.make(self.target.parent)
            self._lock()
            self._refuse_strangers()
            self._finish_or_undo()
            if identity is None:
                return
            if not self._recover(identity):
                shutil.rmtree(self.files, ignore_errors=True)
                os.ftruncate(self._log, 0)
                self._write({"identity": identity, "token": token(self.folder, identity)})
            self.files.mkdir(exist_ok=True)
        except BaseException as error:
            if self._strange:
                self.close()
            elif self._log >= 0:
                self.discard()
            else:
                self._made.remove()
            if isinstance(error, OSError) and not isinstance(error, OutputError):
                raise unwritable(target, error) from error
            raise

    def _lock(self) -> None:
        """Open the log and lock it; another process may be about to remove it."""
        while True:
            own_folder(self.folder, self.target)
            try:
                log = open_private(self.folder / LOG, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            except FileNotFoundError:
                continue
            except OSError:
                with contextlib.suppress(OSError):
                    self.folder.rmdir()
                raise
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(log)
                found = "is being written by another process"
                raise OutputError(self.target, found, "Wait for it, or stop it") from error
            except OSError:
                os.close(log)
                raise
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(log), (self.folder / LOG).stat()):
                    self._log = log
                    return
            os.close(log)

    def _refuse_strangers(self) -> None:
        """Refuse what this user has not written: a journal steers what is moved where.

        Raises
        ------
        OutputError
            If there is something beside the log although its first line is not ours, or it is a link.
        """
        first, _, _ = self._read().partition(b"\n")
        entry = _entry(first)
        ours = is_ours(self.folder, str(entry.get("identity")), entry.get("token"))
        for part in (self.files, self._replaced):
            if os.path.lexists(part) and (not ours or part.is_symlink() or not part.is_dir()):
                self._strange = True
                found = f"{self.folder.name} beside it holds an interrupted export that is not this user's"
                hint = "It may have come with the model. Look at it and remove it, then export again"
                raise OutputError(self.target, found, hint)
        if first and not ours:
            # Nothing but a log: it is overwritten.
            os.ftruncate(self._log, 0)

    def _finish_or_undo(self) -> None:
        """Finish or undo a placement that was killed."""
        lines = self._read().splitlines()
        self._moves = self._told(_entry(lines[-1])) if lines else []
        if not self.placed:
            self._put_back()
            return
        # Errors are not ignored: the next export would find the old output in its way.
        if self._new is not None and self.files.exists():
            # What the new output has changed places with.
            for source, final in self._moves[:-1]:
                # The record, which follows its file.
                if os.path.lexists(source):
                    source.replace(final)
            shutil.rmtree(self.files)
        if self._replaced.exists():
            shutil.rmtree(self._replaced)
        self._moves, self._new = [], None
        os.ftruncate(self._log, 0)

    def _told(self, entry: dict[str, Any]) -> list[tuple[Path, Path]]:
        """Moves that a line of ours tells; none if it is not one."""
        names, new = entry.get("placing"), entry.get("new")
        if not _pairs(names) or not is_ours(self.folder, json.dumps([names, new]), entry.get("token")):
            return []
        if new is not None and not _pairs([new], int):
            return []
        # A line with our token is ours; that it stays within these two places costs nothing to see.
        inside = all(
            Path(source).parts[:1] == (self.files.name,) and ".." not in Path(source).parts
            for source, _ in names
        )
        beside = all(Path(final).name == final and final not in ("", "..") for _, final in names)
        if not inside or not beside:
            return []
        self._new = None if new is None else (new[0], new[1])
        return [(self.folder / source, self.target.with_name(final)) for source, final in names]

    @property
    def placed(self) -> bool:
        """Whether the whole output is in place: its last part has left the partial output.

        What changes places with the one that it replaces is known by its inode: otherwise the old one is there.
        """
        if self._new is not None and self._moves:
            return _inode(self._moves[-1][1]) == self._new
        return bool(self._moves) and not os.path.lexists(self._moves[-1][0])

    def place(self, moves: Sequence[tuple[Path, Path]], stale: Sequence[Path] = ()) -> None:
        """Put the output in place, after moving aside what exists; undone if it fails.

        Parameters
        ----------
        moves : sequence of (Path, Path)
            From inside the partial output to beside the target. Without the last one there is no output; it is also
            the first to be moved aside, so that at no time old and new parts are taken for one model. A single folder,
            and a single file that has a record beside it, change places with what they replace in one step, where the
            system can do that: at no time there is none.
        stale : sequence of Path
            Other parts of what is replaced, beside the target.

        Raises
        ------
        OutputError
            If the disk is full, or what was there before could not be put back either.
        OSError
            If a part cannot be moved.
        """
        names = [[str(source.relative_to(self.folder)), final.name] for source, final in moves]
        # Written before anything is moved, so that the journal tells what to undo after a kill.
        *beside, (whole, target) = moves
        # A file in several parts has no single step.
        one = not stale and (whole.is_dir() if not beside else len(beside) == 1 and _same_kind(whole, target))
        new = _inode(whole) if one else None
        told = None if new is None else list(new)
        signed = token(self.folder, json.dumps([names, told]))
        self._write({"placing": names, "new": told, "token": signed})
        os.fsync(self._log)
        self._moves, self._new = list(moves), new
        try:
            self._replaced.mkdir(exist_ok=True)
            if one and self._exchanged(whole, target, beside):
                return
            for final in (*(final for _, final in reversed(moves)), *stale):
                if os.path.lexists(final):
                    final.rename(self._replaced / final.name)
            for source, final in moves:
                source.rename(final)
        except OSError:
            self._put_back()
            raise

    def _exchanged(self, source: Path, final: Path, beside: Sequence[tuple[Path, Path]]) -> bool:
        """Whether an output has taken the place of another one, which then waits where all that is replaced does.

        The old record goes first and the new one comes last: between them there is none, rather than another one's.
        """
        if not _same_kind(source, final):
            return False
        for _, record in beside:
            if os.path.lexists(record):
                record.rename(self._replaced / record.name)
        if not exchange(source, final):
            return False
        for new, record in beside:
            new.rename(record)
        # If that fails, the next export removes it all the same.
        with contextlib.suppress(OSError):
            source.rename(self._replaced / final.name)
        return True

    def _put_back(self) -> None:
        """Undo what :meth:`place` has done so far: the new parts out, then the old ones in.

        Raises
        ------
        OutputError
            If an old part cannot be moved back. It stays where it is.
        """
        try:
            if (
                self._new is not None
                and len(self._moves) > 1
                and self.placed
                and _same_kind(*self._moves[-1])
            ):
                exchange(*self._moves[-1])
            # A folder with the new one's inode would be in place, and any other is none of ours.
            folder = self._new is not None and len(self._moves) == 1
            for source, final in () if folder else reversed(self._moves):
                if not os.path.lexists(source) and os.path.lexists(final):
                    final.rename(source)
            order = [final.name for _, final in self._moves]
            old = self._replaced.iterdir() if self._replaced.exists() else []
            for part in sorted(old, key=lambda path: order.index(path.name) if path.name in order else -1):
                final = self.target.with_name(part.name)
                if os.path.lexists(final):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final))
                part.rename(final)
            if self._replaced.exists():
                self._replaced.rmdir()
        except OSError as error:
            found = (
                f"its previous content could not be restored ({error.strerror}) and is in {self._replaced}"
            )
            raise OutputError(self.target, found, _NOT_RESTORED) from error
        self._moves, self._new = [], None

    def _recover(self, identity: str) -> bool:
        """Read what an interrupted run has recorded, and cut off a line that it did not finish."""
        good = 0
        lines = self._read().splitlines(keepends=True)
        try:
            if not lines or json.loads(lines[0])["identity"] != identity:
                return False
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                entry = json.loads(line)
                if "placing" in entry:
                    break
                if good:
                    measure = Measure(*entry["measure"]) if "measure" in entry else None
                    spans, zeros = [Span(*s) for s in entry["spans"]], int(entry.get("vanished", 0))
                    self.done[int(entry["slice"])] = Written(spans, measure, zeros)
                good += len(line)
        except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError):
            # What stands before a damaged line is good: every slice is checked against its digests anyway.
            if not good:
                return False
        os.ftruncate(self._log, good)
        return good > 0

    def _read(self) -> bytes:
        parts = []
        os.lseek(self._log, 0, os.SEEK_SET)
        while part := os.read(self._log, 1 << 20):
            parts.append(part)
        return b"".join(parts)

    def _write(self, entry: dict[str, object]) -> None:
        # Unbuffered: nothing is left to write when the disk turns out to be full, and a kill loses no line.
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self._log, line) :]
        except OSError as error:
            raise unwritable(self.target, error) from error

    def add(self, slice_index: int, written: Written) -> None:
        """Record a slice whose bytes are written.

        Raises
        ------
        OutputError
            If the disk is full or fails.
        """
        self.done[slice_index] = written
        spans = [[s.file, s.offset, s.nbytes, s.digest] for s in written.spans]
        entry: dict[str, object] = {"slice": slice_index, "spans": spans}
        if written.measure is not None:
            entry["measure"] = written.measure.to_list()
        if written.vanished:
            entry["vanished"] = written.vanished
        self._write(entry)

    @property
    def opening(self) -> bytes:
        """The line that it begins with, which no other export's journal does."""
        return self._read().partition(b"\n")[0]

    @property
    def resumable(self) -> bool:
        """Whether any slice is recorded."""
        return self._read().count(b"\n") > 1

    def close(self) -> None:
        """Let go of the partial output but keep it, to be resumed."""
        if self._log >= 0:
            os.close(self._log)
            self._log = -1

    def discard(self) -> None:
        """Remove the partial output, and folders above it that were made for it and hold nothing.

        What was replaced goes too if the new output is in place, and is put back if it is not. If that is not possible
        everything stays.
        """
        if not self.placed:
            try:
                self._put_back()
            except OutputError:
                self.close()
                return
        # The log goes last: as long as anything is left, it tells the next export what that is.
        old = self._new is not None
        shutil.rmtree(self.files, ignore_errors=True)
        shutil.rmtree(self._replaced, ignore_errors=True)
        if not self._replaced.exists() and not (old and self.files.exists()):
            with contextlib.suppress(OSError):
                (self.folder / LOG).unlink()
                self.folder.rmdir()
        self._made.remove()
        # And its lock after it: another process waiting for it must not find a folder that is being removed.
        self.close()


def finish_or_undo(target: Path, name: str = "") -> None:
    """Finish or undo a placement that was killed; what can be resumed stays.

    Raises
    ------
    OutputError
        If neither is possible, or another process is writing the same target.
    """
    if (_folder(target, name) / LOG).exists():
        journal = Journal(target, None, name)
        journal.close() if journal.resumable else journal.discard()


def _inode(path: Path) -> tuple[int, int] | None:
    """What a path leads to, links not followed; ``None`` if there is nothing."""
    try:
        state = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    return state.st_dev, state.st_ino


def _same_kind(source: Path, final: Path) -> bool:
    """Whether two paths are both folders or both files, and no links."""
    if source.is_symlink() or final.is_symlink():
        return False
    return (source.is_dir() and final.is_dir()) or (source.is_file() and final.is_file())


def _entry(line: bytes) -> dict[str, Any]:
    """What a line of a journal holds; nothing if it is damaged."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) else {}


def _pairs(value: Any, kind: type = str) -> TypeGuard[list[list[Any]]]:
    """Whether this is a list of one or more pairs."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
        and all(isinstance(part, kind) and not isinstance(part, bool) for pair in value for part in pair)
    )


def _folder(target: Path, name: str) -> Path:
    return hidden_beside(target, name or target.name, SUFFIX)


def unwritable(target: Path, error: OSError) -> OutputError:
    """Error for a place that cannot be written."""
    return OutputError(
        target,
        f"cannot be written ({error.strerror or error})",
        "Choose another place" + spelled(" with --output", ""),
    )


def sync_folder(folder: Path) -> None:
    """Make renames within a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
