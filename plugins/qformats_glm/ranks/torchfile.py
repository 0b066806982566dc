"""Laying out a file that ``torch.load`` reads: a zip archive of plain records, sized before any weight is known.

Records as torch writes them (pytorch:caffe2/serialize/inline_container.cc): a pickle, the byte order, one record a
tensor that begins at a multiple of 64 bytes, the version. Checksums of the tensors' records are left 0, as
``torch.serialization.set_crc32_options(False)`` leaves them: they would have to be known before the weights are.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qformats.errors import ConfigError
from qformats.numbers import SIZES

__all__ = ["Archive", "Record", "lay_out"]

ALIGNMENT = 64
_STORAGES = {
    "f64": "DoubleStorage",
    "f32": "FloatStorage",
    "f16": "HalfStorage",
    "bf16": "BFloat16Storage",
    "i64": "LongStorage",
    "i32": "IntStorage",
    "i16": "ShortStorage",
    "i8": "CharStorage",
    "u8": "ByteStorage",
    "bool": "BoolStorage",
}
_LIMIT = 0xFFFFFFFF
"""From this number on a field of four bytes points to its eight bytes in an extra field."""
_NEVER = 33
"""Date of all records, 1980-01-01: nothing in a file depends on when it was written."""
_ZIP64 = 45
"""Version of zip that readers need."""


@dataclass(frozen=True)
class Record:
    """A tensor to be written.

    Attributes
    ----------
    name : str
        Key in the dict.
    shape : tuple of int
        In elements; stored row by row.
    dtype : str
        Short name.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * SIZES[self.dtype]


@dataclass(frozen=True)
class Archive:
    """A file in which only the tensors' values are missing.

    Attributes
    ----------
    size : int
        Bytes of the file.
    header : bytes
        Content from offset 0 on.
    parts : tuple of (int, bytes)
        Other known content, by offset.
    offsets : mapping of str to int
        First byte of each tensor, by name.
    """

    size: int
    header: bytes
    parts: tuple[tuple[int, bytes], ...]
    offsets: Mapping[str, int]


def lay_out(stem: str, tensors: Sequence[Record]) -> Archive:
    """Place records one after another.

    Parameters
    ----------
    stem : str
        Name of the folder inside the archive; torch takes the file's own name without suffix.
    tensors : sequence of Record
        Content of the dict ``module``, in order.

    Raises
    ------
    ConfigError
        If a dtype has no storage class in torch.
    """
    writer = _Writer(stem)
    writer.add("data.pkl", content=_pickle(tensors))
    writer.add("byteorder", content=b"little")
    offsets = {record.name: writer.add(f"data/{i}", record.nbytes) for i, record in enumerate(tensors)}
    writer.add("version", content=b"3\n")
    return writer.finish(offsets)


class _Writer:
    """A zip archive in the making."""

    def __init__(self, stem: str) -> None:
        self._stem = stem
        self._at = 0
        self._parts: list[tuple[int, bytes]] = []
        self._directory: list[bytes] = []

    def add(self, name: str, size: int = 0, content: bytes = b"") -> int:
        """Place a record, of known content or of a size; gives the first byte of its content."""
        path = f"{self._stem}/{name}".encode()
        size, checksum = len(content) or size, zlib.crc32(content)
        wide = struct.pack("<HHQQ", 1, 16, size, size) if size >= _LIMIT else b""
        begin, used = self._at, 30 + len(path) + len(wide)
        # The padding is an extra field of its own: two letters, its length, and letters as torch writes them.
        padding = -(begin + used + 4) % ALIGNMENT
        extra = wide + struct.pack("<2sH", b"FB", padding) + b"Z" * padding
        shown = min(size, _LIMIT)
        common = (
            _ZIP64 if wide or begin >= _LIMIT else 0,
            0,
            0,
            0,
            _NEVER,
            checksum,
            shown,
            shown,
            len(path),
        )
        local = struct.pack("<4s5H3I2H", b"PK\3\4", *common, len(extra)) + path + extra
        self._put(local + content)
        start = begin + len(local)
        self._at = start + size
        self._enter(path, common, begin, size)
        return start

    def _enter(self, path: bytes, common: tuple[int, ...], begin: int, size: int) -> None:
        """Line of the directory."""
        wide = [size, size] if size >= _LIMIT else []
        wide += [begin] if begin >= _LIMIT else []
        extra = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
        shown = struct.pack("<HHHII", 0, 0, 0, 0, min(begin, _LIMIT))
        line = struct.pack("<4sH5H3I2H", b"PK\1\2", _ZIP64, *common, len(extra)) + shown
        self._directory.append(line + path + extra)

    def _put(self, data: bytes) -> None:
        last = self._parts[-1] if self._parts else None
        if last is not None and last[0] + len(last[1]) == self._at:
            self._parts[-1] = (last[0], last[1] + data)
        else:
            self._parts.append((self._at, data))
        self._at += len(data)

    def finish(self, offsets: Mapping[str, int]) -> Archive:
        """Append the directory and its end, in both widths as torch writes them."""
        directory, begin, count = b"".join(self._directory), self._at, len(self._directory)
        size = len(directory)
        end = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, _ZIP64, _ZIP64, 0, 0, count, count, size, begin)
        end += struct.pack("<4sIQI", b"PK\6\7", 0, begin + size, 1)
        narrow = (min(count, 0xFFFF), min(count, 0xFFFF), min(size, _LIMIT), min(begin, _LIMIT))
        end += struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, *narrow, 0)
        self._put(directory + end)
        (_, header), *parts = self._parts
        return Archive(self._at, header, tuple(parts), offsets)


def _pickle(tensors: Sequence[Record]) -> bytes:
    """``{"module": OrderedDict of tensors}`` in protocol 2, each tensor on a storage of its own."""
    empty = b"ccollections\nOrderedDict\n)R"
    items = b"".join(_text(record.name) + _tensor(record, i, empty) for i, record in enumerate(tensors))
    return b"\x80\x02}" + _text("module") + empty + b"(" + items + b"us."


def _tensor(record: Record, index: int, empty: bytes) -> bytes:
    if record.dtype not in _STORAGES:
        raise ConfigError(f"dtype of {record.name}", record.dtype, "one of " + ", ".join(_STORAGES))
    stride = [math.prod(record.shape[axis + 1 :]) for axis in range(len(record.shape))]
    count = math.prod(record.shape)
    storage = _text("storage") + f"ctorch\n{_STORAGES[record.dtype]}\n".encode()
    place = b"(" + storage + _text(str(index)) + _text("cpu") + _whole(count) + b"tQ"
    # Storage, first element, shape, stride, requires_grad, hooks.
    arguments = place + _whole(0) + _tuple(record.shape) + _tuple(stride) + b"\x89" + empty
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _tuple(numbers: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(_whole, numbers)) + b"t"


def _whole(number: int) -> bytes:
    if number < 1 << 31:
        return b"J" + struct.pack("<i", number)
    data = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data
