"""The record beside an output: what is written of an export, and what can be read again."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from qformats.errors import CheckpointError
from qformats.exporting.stale import recorded_files
from qformats.interfaces.checkpoint import Checkpoint
from qformats.work.checksums import ALGORITHM, Piece, digest
from qformats.work.files import parse_json
from qformats.work.pool import bounded, threads
from qformats.work.progress import Progress, Silent

__all__ = ["RECORD", "Record", "Wrong", "record_beside", "require_unchanged"]

RECORD = "qformats.json"
"""Name of the record in a folder, and how that beside a file ends."""
_LARGEST = 1 << 28
"""Bytes of a record that is read: a model of a terabyte has one of 20 MB."""
_SAMPLE = 64 << 20
"""Bytes that are compared of a model unless all are asked for: 10 ms where memory holds them."""
_READ_AHEAD = 1 << 30
"""Bytes that are read at a time."""


@dataclass(frozen=True)
class Wrong:
    """A file that is not what a record says.

    Attributes
    ----------
    file : Path
        The file.
    found : str
        What is wrong, as a clause.
    expected : str
        What the record says; empty if `found` tells.
    tensor : str
        Tensor whose bytes are others; empty for headers and padding, and for what concerns the whole file.
    """

    file: Path
    found: str
    expected: str = ""
    tensor: str = ""


@dataclass(frozen=True)
class Record:
    """What was recorded of an export.

    Attributes
    ----------
    path : Path
        Its file.
    content : mapping
        As JSON has it.
    sizes : mapping of str to int
        Exact bytes of every file of the output, by name relative to the record's folder.
    pieces : mapping of str to tuple of Piece
        Checksums that cover each file; empty for a record of an earlier version.
    """

    path: Path
    content: Mapping[str, Any]
    sizes: Mapping[str, int]
    pieces: Mapping[str, tuple[Piece, ...]]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a record.

        Raises
        ------
        CheckpointError
            If it is none, or damaged.
        """
        try:
            if path.stat().st_size > _LARGEST:
                raise CheckpointError(path, f"has more than {_LARGEST:,} bytes", "the record of an export")
            content = parse_json(path.read_bytes())
            if not isinstance(content, dict) or "qformats" not in content or "tensors" not in content:
                raise CheckpointError(path, "is something else", "the record of an export")
            sizes = {_inside(name): _size(size) for name, size in content["files"]}
            told = content.get("checksums") or {}
            known = told.get("files", {}) if told.get("algorithm") == ALGORITHM else {}
            pieces = {str(name): tuple(map(Piece.parse, texts)) for name, texts in known.items()}
            _require_cover(sizes, pieces)
        except OSError as error:
            raise CheckpointError(path, f"cannot be read ({error.strerror or error})") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, CheckpointError):
                raise
            found = f"is damaged ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
            hint = "if the model itself is known to be whole, remove this file"
            raise CheckpointError(path, found, "the record that qformats has written", hint=hint) from error
        return cls(path, content, sizes, pieces)

    @property
    def target(self) -> Path:
        """What was written: the folder, or the name that the file or files go by."""
        folder = self.path.parent
        return folder if self.path.name == RECORD else folder / self.path.name.removesuffix(f".{RECORD}")

    def file(self, name: str) -> Path:
        """Where a file of the output lies; a single one may have been renamed along with its record."""
        alone = self.path.name != RECORD and len(self.sizes) == 1
        return self.target if alone else self.path.parent / name

    def tensor_name(self, index: int) -> str:
        """Name of a tensor in the output; empty if there is none of this number."""
        tensors = self.content["tensors"]
        if not isinstance(tensors, list) or not 0 <= index < len(tensors):
            return ""
        return str(tensors[index].get("name", "")) if isinstance(tensors[index], dict) else ""

    def wrong_sizes(self, names: Sequence[str] | None = None) -> list[Wrong]:
        """Files that are missing, or longer or shorter."""
        found = []
        for name in self.sizes if names is None else names:
            file, size = self.file(name), self.sizes[name]
            try:
                has = os.stat(file).st_size
            except OSError as error:
                missing = isinstance(error, FileNotFoundError)
                found.append(Wrong(file, "is missing" if missing else f"cannot be read ({error.strerror})"))
                continue
            if has != size:
                found.append(Wrong(file, f"has {has:,} bytes", f"the {size:,} bytes that were written"))
        return found

    def wrong_bytes(
        self, names: Sequence[str], *, sample: bool, workers: int, progress: Progress
    ) -> Iterator[Wrong]:
        """Pieces of files of the right size whose bytes are not those that were written.

        Parameters
        ----------
        names : sequence of str
            Files.
        sample : bool
            Whether some of them are enough where there are many, others each time.
        workers : int
            Threads.
        progress : Progress
            Receives progress reports.
        """
        chosen = [(name, piece) for name in names for piece in self.pieces.get(name, ()) if piece.nbytes]
        if sample:
            chosen = _some(chosen)
        progress.start("comparing checksums", sum(piece.nbytes for _, piece in chosen))
        handles: dict[str, int] = {}
        try:
            for name in dict.fromkeys(name for name, _ in chosen):
                handles[name] = os.open(self.file(name), os.O_RDONLY | os.O_CLOEXEC)
            with bounded(
                lambda each: digest(handles[each[0]], each[1].offset, each[1].nbytes) == each[1].digest,
                chosen,
                workers,
                weight=lambda each: each[1].nbytes,
                limit=_READ_AHEAD,
                ordered=True,
            ) as compared:
                for (name, piece), same in compared:
                    progress.advance(piece.nbytes)
                    if not same:
                        stop = piece.offset + piece.nbytes
                        found = f"bytes {piece.offset:,} to {stop:,} have changed since they were written"
                        yield Wrong(self.file(name), found, tensor=self.tensor_name(piece.tensor))
        finally:
            for handle in handles.values():
                os.close(handle)


def _inside(name: object) -> str:
    """Name of a file of the output; refuses one that leads elsewhere."""
    path = Path(str(name))
    # A name that the system cannot have: with a zero byte, or characters that its encoding lacks (a ValueError, too).
    strange = not isinstance(name, str) or b"\0" in os.fsencode(name)
    if strange or path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"no file of an output: {str(name)[:80]!r}")
    return str(name)


def _size(value: object) -> int:
    """Bytes of a file."""
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"no number of bytes: {str(value)[:80]!r}")
    return value


def _require_cover(sizes: Mapping[str, int], pieces: Mapping[str, Sequence[Piece]]) -> None:
    """Refuse checksums that leave out a part of a file: it could change without a word."""
    for name, each in pieces.items():
        end = 0
        for piece in each:
            if piece.offset != end:
                raise ValueError(f"the checksums of {name} have a gap at byte {end}")
            end += piece.nbytes
        if end != sizes[name]:
            raise ValueError(f"the checksums of {name} end at byte {end} of {sizes[name]}")
    missing = sorted(sizes.keys() - pieces.keys()) if pieces else []
    if missing:
        raise ValueError(f"it has no checksums of {missing[0]}")


def _some(pieces: Sequence[tuple[str, Piece]]) -> list[tuple[str, Piece]]:
    """All if they are few; otherwise the first of each file, which is its header, and others by chance."""
    if sum(piece.nbytes for _, piece in pieces) <= _SAMPLE:
        return list(pieces)
    first = {name: index for index, (name, _) in reversed([*enumerate(pieces)])}
    order = [*first.values(), *random.sample(range(len(pieces)), len(pieces))]
    chosen: dict[int, None] = {}
    room = _SAMPLE
    for index in order:
        nbytes = pieces[index][1].nbytes
        if index not in chosen and (nbytes <= room or not chosen):
            chosen[index] = None
            room -= nbytes
    return [pieces[index] for index in sorted(chosen)]


def record_beside(path: Path) -> Path | None:
    """The record of a model: in its folder, or beside the file, under whatever name it was exported.

    Parameters
    ----------
    path : Path
        What a user names: a folder, a file, or a part of a split model.

    Returns
    -------
    Path or None
        ``None`` if there is none.
    """
    if path.is_dir():
        return path / RECORD if (path / RECORD).is_file() else None
    own = path.with_name(f"{path.name}.{RECORD}")
    if own.is_file():
        return own
    # Parts of a split model are listed by a record that has the name without the number.
    stem = path.name.partition("-0")[0]
    for beside in sorted(path.parent.glob(f"*.{RECORD}")):
        if beside.name.startswith(stem) and path.name in recorded_files(beside):
            return beside
    return None


def _record_of(source: Checkpoint) -> Path | None:
    """The record of an opened model; none where its files lie elsewhere than what was opened."""
    opened = source.path
    if opened.is_dir() and source.files and opened not in source.files[0].parents:
        return None
    return record_beside(opened)


def require_unchanged(
    source: Checkpoint, *, verify: bool = False, progress: Progress | None = None, workers: int | None = None
) -> None:
    """Refuse a model of ours whose weights are not those that were recorded when it was written.

    Of files with tensors the sizes are compared, and the checksums of 64 MB: all of a small model, and of a large one
    the headers and pieces that are chosen anew each time. Other files, such as a chat template, may be edited.

    Parameters
    ----------
    source : Checkpoint
        The model; one without a record is not looked at.
    verify : bool
        Compare every byte; a notice says so where there is nothing to compare them with.
    progress : Progress, optional
        Receives progress reports.
    workers : int, optional
        Threads; all cores by default.

    Raises
    ------
    CheckpointError
        Naming the file and the tensor; or if the record itself is damaged.
    """
    progress = progress or Silent()
    place = _record_of(source)
    if place is None:
        if verify:
            progress.notice(
                f"{source.name} has no record, so that its bytes have nothing to be compared with"
            )
        return
    record = Record.read(place)
    read = {os.path.realpath(tensor.file): tensor.file for tensor in source.tensors.values()}
    names = [name for name in sorted(record.sizes) if os.path.realpath(record.file(name)) in read]
    wrong = record.wrong_sizes(names)
    if verify:
        known = {os.path.realpath(record.file(name)) for name in names}
        wrong += [Wrong(file, "is not in the record") for real, file in read.items() if real not in known]
        if not record.pieces:
            progress.notice(f"{place.name} is of an earlier version: it has sizes of files, but no checksums")
    if not wrong:
        wrong = list(
            record.wrong_bytes(
                names,
                sample=not verify,
                workers=threads(workers),
                # A sample takes no time that anybody would wait for.
                progress=progress if verify else Silent(),
            )
        )
    if wrong:
        first, more = wrong[0], len(wrong) - 1
        told = first.found + (f", and so have {more:,} other places" if more else "")
        hint = f"fetch or export it again; if it was changed on purpose, remove {place.name}"
        raise CheckpointError(first.file, told, first.expected, tensor=first.tensor or None, hint=hint)
