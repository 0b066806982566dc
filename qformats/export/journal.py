"""The journal of an export: which slices are written, and their checksums.

It lives beside the partial output. A killed export finds it again and goes on; a finished one removes it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from qformats.errors import OutputError

__all__ = ["Journal", "Span"]

SUFFIX = ".qformats-partial"


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


class Journal:
    """Partial output of one export and the record of what it holds.

    Parameters
    ----------
    target : Path
        Final file or folder; the partial output lies beside it, on the same file system.
    identity : str
        Fingerprint of the plan. A journal with another one is discarded.

    Raises
    ------
    OutputError
        If the place cannot be written, or another process is writing the same target.
    """

    def __init__(self, target: Path, identity: str) -> None:
        self.folder = target.with_name(f".{target.name}{SUFFIX}")
        self.files = self.folder / "files"
        self.done: dict[int, list[Span]] = {}
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(exist_ok=True)
            self._log = (self.folder / "journal.jsonl").open("a+", encoding="utf-8")
        except OSError as error:
            hint = "choose another place with --output"
            raise OutputError(target, f"cannot be written ({error.strerror})", hint) from error
        try:
            fcntl.flock(self._log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._log.close()
            raise OutputError(
                target, "is being written by another process", "Wait for it, or stop it"
            ) from error
        self._log.seek(0)
        if not self._recover(identity):
            shutil.rmtree(self.files, ignore_errors=True)
            self._log.seek(0)
            self._log.truncate()
            self._write({"identity": identity})
        self.files.mkdir(exist_ok=True)

    def _recover(self, identity: str) -> bool:
        lines = self._log.read().splitlines()
        try:
            if not lines or json.loads(lines[0]) != {"identity": identity}:
                return False
            for line in lines[1:]:
                entry = json.loads(line)
                self.done[entry["slice"]] = [Span(*span) for span in entry["spans"]]
        except (ValueError, KeyError, TypeError):
            # The last line of a killed run may be torn; what stands before it is good.
            pass
        return True

    def _write(self, entry: dict[str, object]) -> None:
        self._log.write(json.dumps(entry, separators=(",", ":")) + "\n")
        self._log.flush()

    def add(self, slice_index: int, spans: list[Span]) -> None:
        """Record a slice whose bytes are written."""
        self.done[slice_index] = spans
        packed = [[s.file, s.offset, s.nbytes, s.digest] for s in spans]
        self._write({"slice": slice_index, "spans": packed})

    def close(self) -> None:
        """Let go of the partial output but keep it, to be resumed."""
        self._log.close()

    def discard(self) -> None:
        """Remove the partial output."""
        self._log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log.close()


def sync_folder(folder: Path) -> None:
    """Make renames within a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
