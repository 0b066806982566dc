"""Damage to protocol buffers, of which a SentencePiece model is one: fields, their numbers, types and lengths."""

from __future__ import annotations

from functools import lru_cache
from random import Random

from . import blobs
from .texts import WORDS

__all__ = ["change"]

_Field = tuple[int, int, bytes]


def _varint(value: int) -> bytes:
    out = bytearray()
    while True:
        out.append(value & 127 | (128 if value > 127 else 0))
        value >>= 7
        if not value:
            return bytes(out)


@lru_cache(maxsize=2048)
def _fields(data: bytes) -> tuple[_Field, ...] | None:
    """Number, type and content of each; None if it is no message."""
    found, at = [], 0
    try:
        while at < len(data):
            key, at = _read(data, at)
            kind = key & 7
            if kind == 0:
                start = at
                _, at = _read(data, at)
                found.append((key >> 3, kind, data[start:at]))
            elif kind in (1, 5):
                width = 8 if kind == 1 else 4
                found.append((key >> 3, kind, data[at : at + width]))
                at += width
            elif kind == 2:
                length, at = _read(data, at)
                if length > len(data) - at:
                    return None
                found.append((key >> 3, kind, data[at : at + length]))
                at += length
            else:
                return None
    except IndexError:
        return None
    return tuple(found)


def _read(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128 or shift > 70:
            return value, at


def _written(fields: list[_Field]) -> bytes:
    out = []
    for number, kind, content in fields:
        out.append(_varint(number << 3 | kind))
        if kind == 2:
            out.append(_varint(len(content)))
        out.append(content)
    return b"".join(out)


def change(rng: Random, data: bytes) -> bytes:
    """Change one field, here or in a message inside."""
    fields = _fields(data)
    if not fields or rng.random() < 0.1:
        return blobs.change(rng, data)
    changed = [*fields]
    at, how = rng.randrange(len(changed)), rng.random()
    # The few fields behind the pieces matter as much as they do.
    if rng.random() < 0.4:
        rare = [n for n, each in enumerate(changed) if each[0] != 1]
        at = rng.choice(rare) if rare else at
    number, kind, content = changed[at]
    if how < 0.12:
        del changed[at]
    elif how < 0.24:
        changed.insert(rng.randrange(len(changed) + 1), changed[at])
    elif how < 0.3:
        changed[at] = (rng.choice((0, 1, 2, 3, 4, 5, 6, 15, 41, 100, 2**29 - 1)), kind, content)
    elif how < 0.36:
        changed[at] = (number, rng.choice((0, 1, 2, 3, 4, 5, 6, 7)), content)
    elif kind == 2 and content and how < 0.8 and _fields(content):
        changed[at] = (number, kind, change(rng, content))
    elif kind == 2:
        new = (
            rng.choice(WORDS).encode("utf-8", "surrogatepass")
            if rng.random() < 0.5
            else blobs.change(rng, content)
        )
        changed[at] = (number, kind, new)
    elif kind == 0:
        changed[at] = (number, kind, _varint(blobs.integer(rng) % 2**64))
    else:
        changed[at] = (number, kind, rng.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff" * 4, b"\0" * 4)))
    return _written(changed)
