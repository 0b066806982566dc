"""Damage to bytes of which nothing is known but that they hold little-endian numbers."""

from __future__ import annotations

from random import Random

__all__ = ["INTEGERS", "change", "integer"]

INTEGERS = (
    *(
        0,
        1,
        2,
        3,
        4,
        7,
        8,
        9,
        12,
        13,
        16,
        31,
        32,
        33,
        63,
        64,
        127,
        128,
        255,
        256,
        1000,
        4095,
        4096,
        65535,
        65536,
    ),
    *(
        2**20,
        2**24,
        2**30,
        2**31 - 1,
        2**31,
        2**32 - 1,
        2**32,
        2**40,
        2**53,
        2**62,
        2**63 - 1,
        2**63,
        2**64 - 1,
    ),
)
"""Numbers at which programs change their mind."""
_BYTES = (0, 1, 0x20, 0x7F, 0x80, 0xFF)


def integer(rng: Random, old: int | None = None) -> int:
    """A number in place of another one."""
    how = rng.random()
    if old is not None and how < 0.4:
        return max(
            0,
            rng.choice((old + 1, old - 1, old * 2, old // 2, old + 32, old << 32, old ^ 1, -old & 2**64 - 1)),
        )
    if how < 0.85:
        return rng.choice(INTEGERS)
    return rng.getrandbits(rng.choice((4, 8, 16, 32, 64)))


def change(rng: Random, data: bytes) -> bytes:
    """Change some bytes, or the length."""
    size = len(data)
    if not size:
        return bytes(rng.getrandbits(8) for _ in range(rng.randrange(40)))
    how = rng.random()
    if how < 0.08:
        return data[: rng.randrange(size)]
    at = rng.randrange(min(rng.choice((24, 200, size)), size))
    if how < 0.16:
        return data[:at] + data[at + rng.choice((1, 4, 8, 30)) :]
    if how < 0.28:
        other = rng.randrange(size)
        return data[:at] + data[other : other + rng.choice((1, 4, 8, 64))] + data[at:]
    changed = bytearray(data)
    if how < 0.6:
        width = rng.choice((1, 2, 4, 8))
        changed[at : at + width] = (integer(rng) % (1 << 8 * width)).to_bytes(width, "little")
        return bytes(changed[: max(size, 1)])
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at = rng.randrange(min(rng.choice((24, 200, size)), size))
        changed[at] = rng.choice(_BYTES) if rng.random() < 0.6 else changed[at] ^ (1 << rng.randrange(8))
    return bytes(changed)
