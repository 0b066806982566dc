"""Bounds-checked reading of a GGUF header's strings and values.

Every length and count is compared, as an unbounded integer, with what is left of the file before anything
of that size is allocated. The work is linear in the bytes read.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from struct import Struct
from typing import NoReturn

import numpy as np

from qformats.errors import CheckpointError

from .metadata import Value, ValueType

__all__ = [
    "MAX_ITEMS",
    "MAX_KEYS",
    "MAX_KEY_BYTES",
    "MAX_NAME_BYTES",
    "MAX_STRING_BYTES",
    "MAX_TENSORS",
    "SCALARS",
    "Cursor",
    "short",
]

MAX_KEYS = 65_536
MAX_TENSORS = 262_144
"""Far beyond any model, and small enough to be read in seconds."""
MAX_KEY_BYTES = 65_535
MAX_NAME_BYTES = 63
"""llama.cpp keeps tensor names in 64 bytes, the terminator included."""
MAX_STRING_BYTES = MAX_ITEMS = 2**30
"""Longest string and longest array that llama.cpp accepts."""

SCALARS: dict[ValueType, str] = {
    ValueType.U8: "<u1",
    ValueType.I8: "<i1",
    ValueType.U16: "<u2",
    ValueType.I16: "<i2",
    ValueType.U32: "<u4",
    ValueType.I32: "<i4",
    ValueType.F32: "<f4",
    ValueType.BOOL: "|u1",
    ValueType.U64: "<u8",
    ValueType.I64: "<i8",
    ValueType.F64: "<f8",
}
"""How each number is stored. A boolean is one byte, and any byte but 0 means true."""

_U32 = Struct("<I")
_U64 = Struct("<Q")


def short(text: str) -> str:
    """`text` quoted for a message, even if it is long or unprintable."""
    return repr(text if len(text) <= 80 else text[:77] + "...")


class Cursor:
    """A position in a mapped file, moving forward.

    Parameters
    ----------
    path : Path
        Named in errors.
    data : mmap.mmap
        The file's bytes.
    position : int
        Where to start, in bytes.
    """

    __slots__ = ("_data", "path", "position", "size")

    def __init__(self, path: Path, data: mmap.mmap, position: int = 0) -> None:
        self.path, self._data, self.position, self.size = path, data, position, len(data)

    @property
    def remaining(self) -> int:
        """Bytes from here to the end of the file."""
        return self.size - self.position

    def fail(
        self, found: str, expected: str | None = None, *, tensor: str | None = None, hint: str | None = None
    ) -> NoReturn:
        """Raise an error about this file."""
        raise CheckpointError(self.path, found, expected, tensor=tensor, hint=hint)

    def _take(self, count: int, what: str) -> int:
        start = self.position
        if count > self.size - start:
            self.fail(
                f"{what} needs {count} bytes from byte {start}, but the file ends at byte {self.size}",
                "a complete header",
                hint="the file is truncated or corrupt: download or write it again",
            )
        self.position = start + count
        return start

    def integers(self, layout: Struct, what: str) -> tuple[int, ...]:
        """Read integers of this layout."""
        return layout.unpack_from(self._data, self._take(layout.size, what))

    def u32(self, what: str) -> int:
        """Read an unsigned 32-bit integer."""
        return self.integers(_U32, what)[0]

    def u64(self, what: str) -> int:
        """Read an unsigned 64-bit integer."""
        return self.integers(_U64, what)[0]

    def text(self, what: str, limit: int) -> str:
        """Read a string that must be valid UTF-8: a key or a name of at most `limit` bytes."""
        length = self.u64(f"the length of {what}")
        if length > limit:
            self.fail(f"{what} is {length} bytes long", f"at most {limit}")
        start = self._take(length, what)
        raw = self._data[start : start + length]
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is {short(raw.decode('utf-8', 'backslashreplace'))}", "valid UTF-8")

    def value(self, key: str) -> Value:
        """Read a value type and the value of this type.

        Raises
        ------
        CheckpointError
            If the type is unknown, an array holds arrays, or the value runs past the end of the file.
        """
        what = f"the value of key {short(key)}"
        type = self._value_type(what)
        if type == ValueType.STRING:
            return Value(type, self._strings(1, what)[0])
        if type != ValueType.ARRAY:
            return Value(type, self._numbers(type, 1, what)[0].item())
        item = self._value_type(f"an element of {what}")
        count = self.u64(f"the element count of {what}")
        if count > MAX_ITEMS:
            self.fail(f"{what} is an array of {count} elements", f"at most {MAX_ITEMS}")
        if item == ValueType.ARRAY:
            self.fail(f"{what} is an array of arrays", "an array of numbers, booleans or strings")
        if item == ValueType.STRING:
            return Value(type, self._strings(count, what), item)
        return Value(type, self._numbers(item, count, what), item)

    def _value_type(self, what: str) -> ValueType:
        number = self.u32(f"the type of {what}")
        try:
            return ValueType(number)
        except ValueError:
            self.fail(f"{what} has the unknown type {number}", "a value type from 0 to 12")

    def _numbers(self, item: ValueType, count: int, what: str) -> np.ndarray:
        dtype = np.dtype(SCALARS[item])
        start = self._take(count * dtype.itemsize, what)
        view = np.frombuffer(self._data, dtype, count, start)
        # A copy, so that metadata outlives the mapping; its size was just compared with the file's.
        return view != 0 if item == ValueType.BOOL else view.copy()

    def _strings(self, count: int, what: str) -> list[str]:
        if count * 8 > self.remaining:
            self.fail(
                f"{what} is an array of {count} strings, but only {self.remaining} bytes follow",
                f"at least {count * 8}, 8 for each string's length",
                hint="the file is truncated or corrupt: download or write it again",
            )
        # Vocabularies have hundreds of thousands of entries: no method calls in this loop.
        data, size, unpack, start = self._data, self.size, _U64.unpack_from, self.position
        strings = []
        for index in range(count):
            begin = start + 8
            length = unpack(data, start)[0] if begin <= size else MAX_STRING_BYTES
            start = begin + length
            if start > size or length > MAX_STRING_BYTES:
                self.fail(
                    f"string {index} of {what} starts at byte {begin}, but the file ends at byte {size}",
                    f"strings of at most {MAX_STRING_BYTES} bytes that end inside the file",
                    hint="the file is truncated or corrupt: download or write it again",
                )
            strings.append(data[begin:start].decode("utf-8", "surrogateescape"))
        self.position = start
        return strings
