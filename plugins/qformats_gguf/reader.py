"""Reading GGUF files: a memory-mapped reader that trusts nothing in the header.

Nothing is executed, and nothing is allocated before its size was compared with the file's: a file that
claims 2**63 elements, or tensors beyond its end, is refused with one sentence. Tensor data stays on disk
until it is touched.

Source: llama.cpp:ggml/src/gguf.cpp, ggml-org/llama.cpp@0c1e570.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from struct import Struct, unpack_from

import numpy as np

from qformats.errors import CheckpointError, ModelNotFoundError

from .cursor import MAX_KEY_BYTES, MAX_KEYS, MAX_NAME_BYTES, MAX_TENSORS, Cursor, short
from .metadata import Metadata, Value, ValueType
from .types import TYPES, GGMLType

__all__ = ["GGUFFile", "StoredTensor", "read"]

_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip archive (PyTorch saves such files)",
    b"vers": "a Git LFS pointer, not the file itself: run git lfs pull",
    b"lmgg": "a GGML file from before GGUF: convert the original model again",
    b"fmgg": "a GGML file from before GGUF: convert the original model again",
    b"tjgg": "a GGML file from before GGUF: convert the original model again",
    b"<!DO": "a web page, not a model: the download failed",
    b"<htm": "a web page, not a model: the download failed",
}
_AFTER_DIMENSIONS = [Struct(f"<{dimensions}QIQ") for dimensions in range(5)]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies in a file.

    Attributes
    ----------
    name : str
        Name in the file.
    shape : tuple of int
        In torch's order, the contiguous dimension last; GGUF stores it reversed.
    type : GGMLType or None
        ``None`` for a type that this version does not know, or that was removed from llama.cpp: the tensor is
        listed, its data cannot be decoded.
    type_id : int
        The type's number as stored.
    offset : int
        Absolute, in bytes from the start of the file.
    nbytes : int
        Size of the data; for an unknown type, the bytes up to the next tensor, padding included.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLType | None
    type_id: int
    offset: int
    nbytes: int


class GGUFFile:
    """One GGUF file, mapped read-only. Made by :func:`read`; close it, or use it as a context manager.

    Attributes
    ----------
    path : Path
        The file, as it was given: a link is not resolved, since parts of a model are found by name.
    version : int
        2 or 3; the layouts are the same.
    alignment : int
        Bytes that tensor data is aligned to, relative to `data_start`.
    data_start : int
        Absolute offset of the data section.
    size : int
        Bytes of the file when it was opened.
    metadata : Metadata
        In file order. Arrays are copies that outlive the file.
    tensors : dict of str to StoredTensor
        In the order of the header.
    """

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.size = path, len(data)
        self.version, tensor_count, key_count = _start(path, data)
        cursor = Cursor(path, data, 24)
        _check_counts(cursor, key_count, tensor_count)
        self.metadata = _metadata(cursor, key_count)
        self.alignment = _alignment(cursor, self.metadata)
        entries = _entries(cursor, tensor_count)
        self.data_start = -(-cursor.position // self.alignment) * self.alignment
        self.tensors = _place(cursor, entries, self.data_start, self.alignment)
        self._data: mmap.mmap | None = data
        self._bytes: np.ndarray | None = np.frombuffer(data, np.uint8)

    def data(self, tensor: StoredTensor | str) -> np.ndarray:
        """Return the stored bytes of a tensor, without copying.

        Returns
        -------
        numpy.ndarray
            uint8, ``(nbytes,)``, a read-only view of the mapped file.

        Raises
        ------
        KeyError
            If no tensor of the file has this name.
        ValueError
            If the file was closed.
        """
        if self._bytes is None:
            raise ValueError(f"{self.path} is closed")
        found = self.tensors[tensor if isinstance(tensor, str) else tensor.name]
        return self._bytes[found.offset : found.offset + found.nbytes]

    def close(self) -> None:
        """Release the mapping. Views handed out stay valid; it is then freed with the last of them."""
        self._bytes = None
        data, self._data = self._data, None
        if data is not None:
            # BufferError: something still holds a view. All we can do is drop our reference.
            with contextlib.suppress(BufferError):
                data.close()

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read(path: str | os.PathLike[str]) -> GGUFFile:
    """Open one GGUF file; of a split model, only this part.

    :func:`qformats_gguf.shards.open_model` opens a whole model.

    Raises
    ------
    ModelNotFoundError
        If there is no such file.
    CheckpointError
        If it is not a GGUF file of version 2 or 3, or its header contradicts itself or the file's size.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
        # Before opening: opening a named pipe would block.
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            raise CheckpointError(path, f"is {kind}", "a GGUF file", hint="give the .gguf file itself")
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            _check_magic(path, stream.read(4), size)
            data = mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise ModelNotFoundError(path, "no such file") from None
    except OSError as error:
        raise CheckpointError(path, f"cannot be read ({error.strerror})") from error
    return GGUFFile(path, data)


def _check_magic(path: Path, magic: bytes, size: int) -> None:
    if size == 0:
        raise CheckpointError(path, "is empty", "a GGUF file", hint="download or write it again")
    if magic != b"GGUF":
        raise CheckpointError(
            path,
            f"starts with {magic!r}",
            "a GGUF file, which starts with b'GGUF'",
            hint=f"this looks like {_OTHER_FORMATS[magic]}" if magic in _OTHER_FORMATS else None,
        )
    if size < 24:
        raise CheckpointError(
            path,
            f"is {size} bytes long",
            "at least 24",
            hint="the file is truncated: download or write it again",
        )


def _start(path: Path, data: mmap.mmap) -> tuple[int, int, int]:
    version: int
    version, tensor_count, key_count = unpack_from("<IQQ", data, 4)
    if version & 0xFFFF == 0 and version:
        raise CheckpointError(
            path,
            "is big-endian",
            "little-endian GGUF",
            hint=f"convert it first: gguf-convert-endian {path.name} little (from the gguf package)",
        )
    if version not in (2, 3):
        raise CheckpointError(
            path,
            f"has GGUF version {version}",
            "version 2 or 3",
            hint="convert the original model again" if version < 2 else "a newer qformats may read it",
        )
    return version, tensor_count, key_count


def _check_counts(cursor: Cursor, key_count: int, tensor_count: int) -> None:
    # The smallest records: an empty key with a one-byte value, an unnamed tensor without dimensions.
    for what, count, record, limit in (
        ("metadata keys", key_count, 13, MAX_KEYS),
        ("tensors", tensor_count, 24, MAX_TENSORS),
    ):
        possible = min(limit, cursor.remaining // record)
        if count > possible:
            cursor.fail(
                f"declares {count} {what}",
                f"at most {possible} in a file of {cursor.size} bytes",
                hint="the file is truncated or corrupt: download or write it again",
            )


def _metadata(cursor: Cursor, count: int) -> Metadata:
    metadata: Metadata = {}
    for index in range(count):
        key = cursor.text(f"metadata key {index}", MAX_KEY_BYTES)
        if not key:
            cursor.fail(f"metadata key {index} is empty", "a key with a name")
        if key in metadata:
            cursor.fail(f"metadata key {short(key)} appears twice", "every key once")
        metadata[key] = cursor.value(key)
    return metadata


def _alignment(cursor: Cursor, metadata: Metadata) -> int:
    value = metadata.get("general.alignment", Value(ValueType.U32, 32))
    if value.type != ValueType.U32:
        cursor.fail(f"general.alignment has type {value.type.name}", "type U32")
    alignment: int = value.data
    if alignment.bit_count() != 1:
        cursor.fail(f"general.alignment is {alignment}", "a power of two")
    return alignment


def _entries(cursor: Cursor, count: int) -> list[StoredTensor]:
    entries: dict[str, StoredTensor] = {}
    for index in range(count):
        entry = _entry(cursor, index)
        if entry.name in entries:
            cursor.fail("appears twice", "every tensor once", tensor=entry.name)
        entries[entry.name] = entry
    return list(entries.values())


def _entry(cursor: Cursor, index: int) -> StoredTensor:
    """Read a tensor's entry; its offset still counts from the start of the data section."""
    name = cursor.text(f"the name of tensor {index}", MAX_NAME_BYTES)
    dimensions = cursor.u32(f"the number of dimensions of tensor {name!r}")
    if dimensions > 4:
        cursor.fail(f"has {dimensions} dimensions", "at most 4", tensor=name)
    *ne, type_id, offset = cursor.integers(_AFTER_DIMENSIONS[dimensions], f"the entry of tensor {name!r}")
    shape = tuple(reversed(ne))
    if 0 in shape:
        cursor.fail(f"has shape {shape}", "no dimension of size 0", tensor=name)
    type = TYPES.get(type_id)
    if type is None:
        return StoredTensor(name, shape, None, type_id, offset, 0)
    row, count = (shape or (1,))[-1], 1
    for size in shape[:-1]:
        count *= size
    if row % type.block_size:
        cursor.fail(
            f"has rows of {row} elements", f"a multiple of {type.block_size} for {type.name}", tensor=name
        )
    return StoredTensor(
        name, shape, type, type_id, offset, count * (row // type.block_size) * type.block_bytes
    )


def _place(
    cursor: Cursor, entries: list[StoredTensor], data_start: int, alignment: int
) -> dict[str, StoredTensor]:
    """Check where the tensors lie and make their offsets absolute.

    llama.cpp requires them back to back in header order. Gaps and other orders are harmless to a reader that
    looks data up by offset, so only overlaps are refused.
    """
    tensors = {entry.name: entry for entry in entries}
    by_offset = sorted(entries, key=lambda entry: entry.offset)
    ends = [*(data_start + entry.offset for entry in by_offset[1:]), cursor.size]
    for index, (entry, limit) in enumerate(zip(by_offset, ends, strict=False)):
        start = data_start + entry.offset
        end = start + (entry.nbytes if entry.type else max(limit - start, 1))
        if entry.offset % alignment:
            cursor.fail(f"starts at offset {entry.offset}", f"a multiple of {alignment}", tensor=entry.name)
        if end > cursor.size:
            cursor.fail(
                f"needs bytes {start} to {end}, but the file ends at byte {cursor.size}",
                "a file that holds all its tensors",
                tensor=entry.name,
                hint="the file is truncated: download or write it again",
            )
        if end > limit:
            cursor.fail(
                f"covers bytes {start} to {end}, but tensor {by_offset[index + 1].name!r} starts at {limit}",
                "tensors that do not overlap",
                tensor=entry.name,
            )
        tensors[entry.name] = StoredTensor(
            entry.name, entry.shape, entry.type, entry.type_id, start, end - start
        )
    return tensors
