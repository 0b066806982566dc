"""Damage to GGUF files by field: counts, lengths, types, offsets, dimensions, keys, values and tensors.

The walk over a header here is the fuzzer's own, so that a fault of the reader is not a fault of its test.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random

from . import blobs
from .texts import WORDS

__all__ = ["change"]

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_TYPES = (*range(14), 255, 2**31, 2**32 - 1)
_GGML = (*range(45), 100, 2**31, 2**32 - 1)
_FLOATS = (0.0, -1.0, 1e-9, 3e38, float("nan"), float("inf"), float("-inf"), 1.5, 10000.0)


@dataclass
class _Header:
    """Where the fields of a file lie: ``(offset, width)`` by what they hold, and the records as bytes."""

    numbers: list[tuple[int, int]] = field(default_factory=list)
    types: list[tuple[int, int]] = field(default_factory=list)
    texts: list[tuple[int, int]] = field(default_factory=list)
    """Offset of the length, and bytes of the text."""
    pairs: list[tuple[int, int]] = field(default_factory=list)
    values: list[tuple[int, int, int]] = field(default_factory=list)
    """Start and end of a value with its type, and the type."""
    tensors: list[tuple[int, int]] = field(default_factory=list)
    end: int = 24


@lru_cache(maxsize=512)
def _walked(data: bytes) -> _Header | None:
    """Fields, as far as they can be followed; None if there are none."""
    if len(data) < 24:
        return None
    found = _Header(numbers=[(4, 4), (8, 8), (16, 8)])
    tensors, pairs = struct.unpack_from("<QQ", data, 8)
    at = 24
    try:
        for _ in range(min(pairs, 200)):
            start = at
            at = _text(data, at, found)
            value = at
            at, kind = _value(data, at, found)
            found.pairs.append((start, at))
            found.values.append((value, at, kind))
        for _ in range(min(tensors, 200)):
            start = at
            at = _text(data, at, found)
            (dimensions,) = struct.unpack_from("<I", data, at)
            if dimensions > 8:
                break
            found.numbers += [(at, 4), *((at + 4 + 8 * n, 8) for n in range(dimensions))]
            at += 4 + 8 * dimensions
            found.types.append((at, 4))
            found.numbers.append((at + 4, 8))
            at += 12
            found.tensors.append((start, at))
    except (struct.error, ValueError):
        return found if found.pairs else None
    found.end = at
    return found


def _text(data: bytes, at: int, found: _Header) -> int:
    (length,) = struct.unpack_from("<Q", data, at)
    if length > len(data) - at:
        raise ValueError
    found.texts.append((at, length))
    return at + 8 + length


def _value(data: bytes, at: int, found: _Header) -> tuple[int, int]:
    (kind,) = struct.unpack_from("<I", data, at)
    found.types.append((at, 4))
    at += 4
    if kind == _STRING:
        return _text(data, at, found), kind
    if kind != _ARRAY:
        found.numbers.append((at, _SIZES[kind] if kind in _SIZES else 1))
        if kind not in _SIZES:
            raise ValueError
        return at + _SIZES[kind], kind
    item, count = struct.unpack_from("<IQ", data, at)
    found.types.append((at, 4))
    found.numbers.append((at + 4, 8))
    at += 12
    if item == _STRING:
        if count > len(data):
            raise ValueError
        for _ in range(count):
            at = _text(data, at, found)
        return at, kind
    if item not in _SIZES or count * _SIZES[item] > len(data) - at:
        raise ValueError
    found.numbers += [(at + _SIZES[item] * n, _SIZES[item]) for n in range(min(count, 8))]
    return at + count * _SIZES[item], kind


def change(rng: Random, data: bytes) -> bytes:
    """Change one field, or one record."""
    header = _walked(data)
    how = rng.random()
    if header is None or how < 0.1:
        return blobs.change(rng, data)
    if how < 0.35:
        at, width = rng.choice(header.numbers)
        old = int.from_bytes(data[at : at + width], "little")
        new = blobs.integer(rng, old) % (1 << 8 * width)
        if width == 4 and rng.random() < 0.2:
            return data[:at] + struct.pack("<f", rng.choice(_FLOATS)) + data[at + 4 :]
        return data[:at] + new.to_bytes(width, "little") + data[at + width :]
    if how < 0.45 and header.types:
        at, width = rng.choice(header.types)
        return (
            data[:at]
            + struct.pack("<I", rng.choice(_GGML if rng.random() < 0.4 else _TYPES))
            + data[at + width :]
        )
    if how < 0.6 and header.texts:
        at, length = rng.choice(header.texts)
        if rng.random() < 0.2:
            # A length that lies.
            return data[:at] + struct.pack("<Q", blobs.integer(rng, length) % 2**64) + data[at + 8 :]
        old = data[at + 8 : at + 8 + length]
        new = (
            rng.choice(WORDS).encode("utf-8", "surrogatepass")
            if rng.random() < 0.5
            else blobs.change(rng, old)
        )
        return data[:at] + struct.pack("<Q", len(new)) + new + data[at + 8 + length :]
    if how < 0.75 and header.values:
        start, end, _ = rng.choice(header.values)
        return data[:start] + _made(rng) + data[end:]
    return _records(rng, data, header)


def _made(rng: Random) -> bytes:
    """A value of any type, in order."""
    kind = rng.choice((*_SIZES, _STRING, _ARRAY, _ARRAY))
    if kind == _STRING:
        return struct.pack("<I", kind) + _string(rng)
    if kind != _ARRAY:
        return struct.pack("<I", kind) + _scalar(rng, kind)
    item = rng.choice((*_SIZES, _STRING, _STRING, _ARRAY))
    count = rng.choice((0, 1, 2, 5, 300))
    body = [_string(rng) if item == _STRING else _scalar(rng, item) for _ in range(min(count, 5))]
    body = [body[n % len(body)] for n in range(count)] if body else []
    return struct.pack("<IIQ", kind, item, count) + b"".join(body)


def _string(rng: Random) -> bytes:
    text = rng.choice(WORDS).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text


def _scalar(rng: Random, kind: int) -> bytes:
    if kind == 6:
        return struct.pack("<f", rng.choice(_FLOATS))
    if kind == 12:
        return struct.pack("<d", rng.choice((*_FLOATS, 1e300)))
    width = _SIZES.get(kind, 12)
    return (blobs.integer(rng) % (1 << 8 * width)).to_bytes(width, "little")


def _records(rng: Random, data: bytes, header: _Header) -> bytes:
    """Drop, double or move a whole key or tensor, with the count told or not."""
    tensors = bool(header.tensors) and (rng.random() < 0.4 or not header.pairs)
    records = header.tensors if tensors else header.pairs
    if not records:
        return blobs.change(rng, data)
    at = 8 if tensors else 16
    (count,) = struct.unpack_from("<Q", data, at)
    start, end = rng.choice(records)
    how = rng.random()
    if how < 0.4:
        data, count = data[:start] + data[end:], count - 1
    elif how < 0.8:
        other, _ = rng.choice(records)
        data, count = data[:other] + data[start:end] + data[other:], count + 1
    else:
        # The header ends here, whatever was counted.
        data = data[:start] + data[header.end :]
        count = records.index((start, end))
    if rng.random() < 0.8:
        data = data[:at] + struct.pack("<Q", count % 2**64) + data[at + 8 :]
    return data
