"""Damage to safetensors files: their header, its length, the places of tensors, and weights."""

from __future__ import annotations

import json
import struct
from random import Random

from . import blobs, values

__all__ = ["change"]

_NUMBERS = (
    b"\xff" * 4,
    b"\0\0\x80\x7f",
    b"\0\x7c\0\xfc",
    b"\0" * 4,
    b"\0\0\xc0\x7f",
    b"\x80" * 4,
    b"\x7f" * 4,
)
"""Scales that are NaN or infinite, codes out of range."""


def change(rng: Random, data: bytes) -> bytes:
    """Change one thing."""
    how = rng.random()
    if len(data) < 10 or how < 0.08:
        return blobs.change(rng, data)
    (length,) = struct.unpack("<Q", data[:8])
    if how < 0.12:
        return struct.pack("<Q", blobs.integer(rng, length) % 2**64) + data[8:]
    head, body = data[8 : 8 + length], data[8 + length :]
    if how < 0.3 and body:
        changed = bytearray(body)
        for _ in range(rng.choice((1, 4, 30))):
            at = rng.randrange(len(changed))
            changed[at : at + 4] = rng.choice(_NUMBERS)
        return data[: 8 + length] + bytes(changed[: len(body)])
    try:
        entries = json.loads(head)
    except (ValueError, RecursionError):
        return blobs.change(rng, data)
    names = (
        [name for name, entry in entries.items() if isinstance(entry, dict)]
        if isinstance(entries, dict)
        else []
    )
    if names and how < 0.6:
        entries, body = _moved(rng, entries, rng.choice(names), names, body)
    else:
        entries = values.spoil(rng, entries)
    text = json.dumps(entries).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def _moved(rng: Random, entries: dict, name: str, names: list[str], body: bytes) -> tuple[dict, bytes]:
    """Change type, shape, place or name of one tensor, some of them so that the file is still in order."""
    entry, how = entries[name], rng.random()
    shape, dtype = entry.get("shape"), entry.get("dtype")
    if how < 0.2:
        entry["dtype"] = rng.choice(values.DTYPES)
    elif how < 0.35 and isinstance(shape, list) and shape:
        # As many elements in another shape.
        entry["shape"] = rng.choice((shape[::-1], [*shape, 1], [1, *shape], [_product(shape)], [0, *shape]))
    elif how < 0.5 and isinstance(shape, list) and shape:
        shape[rng.randrange(len(shape))] = blobs.integer(rng, 8)
    elif how < 0.65 and isinstance(entry.get("data_offsets"), list) and entry["data_offsets"]:
        offsets = entry["data_offsets"]
        offsets[rng.randrange(len(offsets))] = blobs.integer(rng, 64)
    elif how < 0.75:
        entries[rng.choice(names)] = entry
    elif how < 0.85:
        entries[f"{name}{rng.choice(('x', '.weight', '_scale', '.scales', '.0'))}"] = entries.pop(name)
    else:
        # A shorter last tensor, and a file that ends with it.
        last = max(names, key=lambda each: (entries[each].get("data_offsets") or [0, 0])[-1:])
        if (
            last == name
            and isinstance(shape, list)
            and shape
            and dtype
            and isinstance(shape[0], int)
            and shape[0] > 1
        ):
            begin, end = entry["data_offsets"]
            row = (end - begin) // shape[0]
            entry["shape"], entry["data_offsets"] = [shape[0] - 1, *shape[1:]], [begin, end - row]
            body = body[: len(body) - row]
        else:
            del entries[name]
    return entries, body


def _product(shape: list) -> int:
    total = 1
    for each in shape:
        total *= each if isinstance(each, int) else 1
    return total
