"""Typed values of a GGUF header's key-value section.

GGUF stores a type with every value (a ``u32`` and an ``i32`` of the same number are different bytes),
so metadata travels through the plugin as :class:`Value`, never as bare Python objects.

Source: ggml-org/llama.cpp:docs and ggml/src/gguf.cpp (GGUF version 3).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from qformats.interfaces import Values

__all__ = ["Keys", "Metadata", "Value", "ValueType", "array", "boolean", "f32", "i32", "string", "u16", "u32"]


class ValueType(IntEnum):
    """Type ids as stored in the file."""

    U8 = 0
    I8 = 1
    U16 = 2
    I16 = 3
    U32 = 4
    I32 = 5
    F32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    U64 = 10
    I64 = 11
    F64 = 12


@dataclass(frozen=True)
class Value:
    """One metadata value.

    Attributes
    ----------
    type : ValueType
        Type of the value; ``ARRAY`` for arrays.
    data : int, float, bool, str, list of str, or numpy.ndarray
        The value itself. Arrays of numbers and booleans that were read from a file are one NumPy array;
        writers also take lists. Strings hold arbitrary bytes as surrogate escapes.
    item : ValueType, optional
        Element type of an array, ``None`` otherwise.
    """

    type: ValueType
    data: Any
    item: ValueType | None = None


Metadata = dict[str, Value]
"""Keys in file order."""


class Keys(Values):
    """Keys of a header that was read from a file; see :class:`~qformats.interfaces.Values`.

    Integers of any width are whole numbers, both kinds of floats are numbers, and arrays are lists.

    Parameters
    ----------
    metadata : Metadata
        All of the file's.
    source : str
        The file, for messages.
    """

    def __init__(self, metadata: Metadata, source: str) -> None:
        super().__init__(metadata, source)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str) -> Any:
        """The value as Python's own type; ``None`` if it is absent."""
        found = self._values.get(key)
        data: Any = None if found is None else found.data
        return data.tolist() if hasattr(data, "tolist") else data


def u16(data: int) -> Value:
    """Value of type u16."""
    return Value(ValueType.U16, int(data))


def u32(data: int) -> Value:
    """Value of type u32, which GGUF uses for counts, sizes and token ids."""
    return Value(ValueType.U32, int(data))


def i32(data: int) -> Value:
    """Value of type i32."""
    return Value(ValueType.I32, int(data))


def f32(data: float) -> Value:
    """Value of type f32."""
    return Value(ValueType.F32, float(data))


def boolean(data: bool) -> Value:
    """Value of type bool."""
    return Value(ValueType.BOOL, bool(data))


def string(data: str) -> Value:
    """Value of type string."""
    return Value(ValueType.STRING, str(data))


def array(item: ValueType, data: Iterable[Any]) -> Value:
    """Array of `item`; strings stay a list, numbers may be any sequence."""
    return Value(ValueType.ARRAY, list(data), item)
