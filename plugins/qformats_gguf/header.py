"""Writing GGUF headers: every byte before the tensor data, and where each tensor's data goes.

Sizes and offsets follow from names, types and shapes alone, so a file is laid out before any data exists.
The same input gives the same bytes.

Source: llama.cpp:ggml/src/gguf.cpp and tools/gguf-split, ggml-org/llama.cpp@0c1e570.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from struct import pack
from typing import Any, NamedTuple

import numpy as np

from qformats.errors import ConfigError, Described

from .cursor import (
    MAX_ITEMS,
    MAX_KEY_BYTES,
    MAX_KEYS,
    MAX_NAME_BYTES,
    MAX_STRING_BYTES,
    MAX_TENSORS,
    SCALARS,
    short,
)
from .metadata import Metadata, Value, ValueType, i32, u16, u32
from .types import GGMLType, row_bytes

__all__ = ["ALIGNMENT", "Header", "TensorInfo", "serialize", "shard_metadata", "shard_name", "split"]

ALIGNMENT = 32
_INT64_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor to write.

    Attributes
    ----------
    name : str
        1 to 63 bytes of UTF-8.
    shape : tuple of int
        1 to 4 dimensions in torch's order, the contiguous one last.
    type : GGMLType
        How the data is stored.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLType

    @property
    def nbytes(self) -> int:
        """Bytes of the data, without padding.

        Raises
        ------
        ConfigError
            If a row is not a multiple of the type's block.
        """
        return math.prod(self.shape[:-1]) * row_bytes(self.type, self.shape[-1])


class Header(NamedTuple):
    """What :func:`serialize` gives.

    Attributes
    ----------
    data : bytes
        Start of the file, including padding up to the first tensor.
    offsets : tuple of int
        Absolute offset of each tensor, in the order given.
    total_size : int
        Bytes of the whole file; the last tensor is padded too.
    """

    data: bytes
    offsets: tuple[int, ...]
    total_size: int


def serialize(metadata: Metadata, tensors: Sequence[TensorInfo], alignment: int | None = None) -> Header:
    """Lay out a GGUF file of version 3.

    Parameters
    ----------
    metadata : Metadata
        Written in this order.
    tensors : sequence of TensorInfo
        Written in this order, back to back, which is the only layout that llama.cpp accepts.
    alignment : int, optional
        By default what `metadata` says under ``general.alignment``, or 32. Another value is added as that key.

    Raises
    ------
    ConfigError
        If a name, shape or value cannot be stored, or not where llama.cpp reads it.
    """
    metadata, alignment = _with_alignment(metadata, alignment)
    _check_count("metadata keys", len(metadata), MAX_KEYS)
    _check_count("tensors", len(tensors), MAX_TENSORS)
    parts = [b"GGUF", pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += (_name(f"metadata key {short(key)}", key, MAX_KEY_BYTES), pack("<I", value.type))
        parts += _value(key, value)
    offsets, end, seen = [], 0, set()
    for tensor in tensors:
        if tensor.name in seen:
            raise ConfigError("tensor name", tensor.name, "a name that no other tensor has")
        seen.add(tensor.name)
        parts.append(_entry(tensor, end))
        offsets.append(end)
        end += _pad(tensor.nbytes, alignment)
        if end > _INT64_MAX:
            raise ConfigError("size of the tensors", end, f"at most {_INT64_MAX} bytes")
    head = b"".join(parts)
    start = _pad(len(head), alignment)
    return Header(head.ljust(start, b"\0"), tuple(start + offset for offset in offsets), start + end)


def split(
    tensors: Sequence[TensorInfo], max_tensors: int | None = None, max_bytes: int | None = None
) -> list[list[TensorInfo]]:
    """Group tensors into the parts of a split model, keeping their order.

    Parameters
    ----------
    tensors : sequence of TensorInfo
        All tensors of the model.
    max_tensors : int, optional
        Tensors in one part.
    max_bytes : int, optional
        Bytes of padded tensor data in one part; headers come on top. A larger tensor gets a
        part of its own.

    Returns
    -------
    list of list of TensorInfo
        At least one group; none is empty unless there are no tensors.
    """
    for key, limit in (("max_tensors", max_tensors), ("max_bytes", max_bytes)):
        if limit is not None and limit < 1:
            raise ConfigError(key, limit, "at least 1")
    groups: list[list[TensorInfo]] = [[]]
    size = 0
    for tensor in tensors:
        nbytes = _pad(tensor.nbytes, ALIGNMENT)
        too_many = max_tensors is not None and len(groups[-1]) >= max_tensors
        too_large = max_bytes is not None and size + nbytes > max_bytes
        if groups[-1] and (too_many or too_large):
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += nbytes
    return groups


def shard_metadata(metadata: Metadata, index: int, count: int, total_tensors: int) -> Metadata:
    """Metadata of one part of a split model.

    The first part holds the model's metadata; every part holds the ``split.*`` keys, and
    ``general.alignment`` where the model has it, since each file is laid out by its own.

    Parameters
    ----------
    metadata : Metadata
        Of the model; ``split.*`` keys in it are dropped.
    index : int
        From 0.
    count : int
        Number of parts. With 1, no key is added.
    total_tensors : int
        Tensors of all parts.
    """
    _check_shard(index, count)
    if index == 0:
        part = {key: value for key, value in metadata.items() if not key.startswith("split.")}
    else:
        part = {key: metadata[key] for key in ("general.alignment",) if key in metadata}
    if count > 1:
        part |= {
            "split.no": u16(index),
            "split.count": u16(count),
            "split.tensors.count": i32(total_tensors),
        }
    return part


def shard_name(prefix: str, index: int, count: int) -> str:
    """File name of part `index` (from 0); llama.cpp finds the parts by it.

    Examples
    --------
    >>> shard_name("llama", 0, 3)
    'llama-00001-of-00003.gguf'
    """
    _check_shard(index, count)
    return f"{prefix}-{index + 1:05d}-of-{count:05d}.gguf"


def _check_shard(index: int, count: int) -> None:
    if not 1 <= count <= 65_535:
        raise ConfigError("number of parts", count, "1 to 65535", "allow more bytes or tensors in each part")
    if not 0 <= index < count:
        raise ConfigError("part", index, f"0 to {count - 1}")


def _check_count(what: str, count: int, limit: int) -> None:
    if count > limit:
        raise ConfigError(f"number of {what}", count, f"at most {limit}")


def _with_alignment(metadata: Metadata, alignment: int | None) -> tuple[Metadata, int]:
    stored = metadata.get("general.alignment")
    if stored is not None and stored.type != ValueType.U32:
        raise ConfigError("general.alignment", stored, "a value of type u32, as llama.cpp requires")
    if stored is not None and alignment not in (None, stored.data):
        raise ConfigError("alignment", alignment, f"{stored.data}, as in general.alignment")
    chosen: int = stored.data if stored else alignment if alignment is not None else ALIGNMENT
    if not 0 < chosen < 2**32 or chosen.bit_count() != 1:
        raise ConfigError("alignment", chosen, "a power of two")
    if stored is None and chosen != ALIGNMENT:
        metadata = metadata | {"general.alignment": u32(chosen)}
    return metadata, chosen


def _pad(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _name(what: str, text: str, limit: int) -> bytes:
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        raise ConfigError(what, text, "text that UTF-8 can encode") from None
    if not 1 <= len(raw) <= limit:
        raise ConfigError(what, Described(f"{len(raw)} bytes"), f"1 to {limit} bytes")
    return pack("<Q", len(raw)) + raw


def _entry(tensor: TensorInfo, offset: int) -> bytes:
    name = _name(f"name of tensor {tensor.name!r}", tensor.name, MAX_NAME_BYTES)
    shape, key = tensor.shape, f"shape of tensor {tensor.name!r}"
    if not 1 <= len(shape) <= 4 or min(shape) < 1:
        raise ConfigError(key, shape, "1 to 4 dimensions of at least 1")
    if math.prod(shape) > _INT64_MAX:
        raise ConfigError(key, shape, f"at most {_INT64_MAX} elements")
    if shape[-1] % tensor.type.block_size:
        raise ConfigError(
            key, shape, f"rows whose length is a multiple of {tensor.type.block_size} for {tensor.type.name}"
        )
    return name + pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), tensor.type.id, offset)


def _value(key: str, value: Value) -> Iterable[bytes]:
    what = f"metadata {short(key)}"
    if value.type == ValueType.STRING:
        return _strings(what, [value.data])
    if value.type != ValueType.ARRAY:
        return (_numbers(what, value.type, [value.data]),)
    item, data = value.item, value.data
    if item is None or item == ValueType.ARRAY:
        raise ConfigError(what, item, "an array of numbers, booleans or strings")
    _check_count(f"elements of {what}", len(data), MAX_ITEMS)
    start = pack("<IQ", item, len(data))
    if item == ValueType.STRING:
        return chain((start,), _strings(what, data))
    return (start, _numbers(what, item, data))


def _strings(what: str, data: Iterable[Any]) -> list[bytes]:
    parts: list[bytes] = []
    for text in data:
        if not isinstance(text, str):
            raise ConfigError(what, text, "a string")
        try:
            raw = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise ConfigError(what, text, "text or escaped bytes, without other surrogates") from None
        if len(raw) > MAX_STRING_BYTES:
            raise ConfigError(what, Described(f"{len(raw)} bytes"), f"at most {MAX_STRING_BYTES}")
        parts += (pack("<Q", len(raw)), raw)
    return parts


_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "bool": ((bool, np.bool_), "true or false"),
    "int": ((int, np.integer), "an integer"),
    "float": ((int, float, np.integer, np.floating), "a number"),
}


def _numbers(what: str, item: ValueType, data: Any) -> bytes:
    """Bytes of numbers of one type, refusing whatever a cast would change beyond rounding."""
    dtype = np.dtype(SCALARS[item])
    kind = "bool" if item == ValueType.BOOL else "float" if dtype.kind == "f" else "int"
    if isinstance(data, np.ndarray):
        if data.ndim != 1 or data.dtype.kind not in {"bool": "b", "int": "iu", "float": "iuf"}[kind]:
            found = Described(f"an array of {data.dtype} and shape {data.shape}")
            raise ConfigError(what, found, f"a list of {kind}s")
    else:
        allowed, expected = _KINDS[kind]
        for number in data:
            if not isinstance(number, allowed) or (kind != "bool" and isinstance(number, bool)):
                raise ConfigError(what, number, expected)
    if kind == "int" and len(data):
        limits = np.iinfo(dtype)
        lowest, highest = (data.min(), data.max()) if isinstance(data, np.ndarray) else (min(data), max(data))
        for extreme in (int(lowest), int(highest)):
            if not limits.min <= extreme <= limits.max:
                raise ConfigError(what, extreme, f"{limits.min} to {limits.max} for {item.name}")
    try:
        with np.errstate(over="ignore"):
            wide = np.asarray(data, np.float64 if kind == "float" else None if kind == "bool" else dtype)
            cast = wide.astype(dtype)
    except OverflowError:
        found = Described("an integer beyond float64")
        raise ConfigError(what, found, f"a number that {item.name} can hold") from None
    if kind == "float" and not np.array_equal(np.isinf(cast), np.isinf(wide)):
        raise ConfigError(
            what, float(wide[np.isinf(cast) != np.isinf(wide)][0]), f"a number that {item.name} can hold"
        )
    return cast.tobytes()
