"""Scales and minima of a packed row, as float32."""

from __future__ import annotations

from typing import Any

from numpy import float32, uint8, uint32

from qformats.kernels import cpu
from qformats.kernels.vectors import (
    both,
    bytes_at,
    bytes_of,
    floats,
    half_at,
    high_halves,
    less,
    low_halves,
    put_floats,
    right,
    signed,
    splat,
    times,
    word_at,
)

__all__ = ["CODINGS", "row_scales"]

CODINGS = ("none", "nibbles", "six", "pairs", "bytes")
"""How scales within a block are stored, see :class:`qformats_gguf.superblocks.layout.SuperLayout`."""
_NONE, _NIBBLES, _SIX, _PAIRS, _BYTES = range(5)


@cpu.jit(inline="code")
def _joined(low: Any, moved: Any, high: Any, by: Any) -> Any:
    """Four whole numbers of six bits: the lower four from one word, the upper two from another."""
    return uint32(((low >> moved) & 0x0F0F0F0F) | (((high >> by) & 0x03030303) << 4))


@cpu.jit(inline="code")
def row_scales(
    stored: Any,
    at: Any,
    count: Any,
    size: Any,
    coding: Any,
    scales_at: Any,
    d_at: Any,
    minimum: Any,
    words: Any,
    outer: Any,
    lower: Any,
    scale: Any,
    shift: Any,
) -> None:
    """Write the scales of a row of `count` blocks to `scale`, and what is added to its values to `shift`.

    `words`, `outer` and `lower` are for its own use. All arrays have room for 16 elements more, which are overwritten.
    """
    for b in range(count):
        place = at + b * size + d_at
        # A second float16 behind the scale, if any, is that of the minimum.
        words[b] = word_at(stored, place) if minimum else half_at(stored, place)
    for b in range(0, count, 16):
        put_floats(scale if coding == _NONE else outer, b, low_halves(words, b))
        if minimum:
            put_floats(shift if coding == _NONE else lower, b, high_halves(words, b))
    if coding == _NONE:
        return
    for b in range(count):
        # Minima are stored as what is subtracted.
        place, d, below = at + b * size + scales_at, splat(outer[b]), splat(float32(-lower[b]))
        if coding == _NIBBLES:
            pairs = bytes_at(stored, place)
            put_floats(scale, 16 * b, times(floats(both(pairs, uint8(15))), d))
            put_floats(shift, 16 * b, times(floats(right(pairs, uint8(4))), below))
        elif coding == _BYTES:
            put_floats(scale, 16 * b, times(signed(bytes_at(stored, place)), d))
        else:
            low, high, rest = word_at(stored, place), word_at(stored, place + 4), word_at(stored, place + 8)
            if coding == _PAIRS:
                first, second = uint32(low & 0x3F3F3F3F), _joined(rest, 0, low, 6)
                third, fourth = uint32(high & 0x3F3F3F3F), _joined(rest, 4, high, 6)
                # There are eight; the next block's overwrite the others.
                put_floats(scale, 8 * b, times(floats(bytes_of(first, second, third, fourth)), d))
                put_floats(shift, 8 * b, times(floats(bytes_of(third, fourth, first, second)), below))
            else:
                first, second = _joined(low, 0, rest, 0), _joined(high, 0, rest, 2)
                third, fourth = _joined(low, 4, rest, 4), _joined(high, 4, rest, 6)
                six = less(bytes_of(first, second, third, fourth), uint8(32))
                put_floats(scale, 16 * b, times(signed(six), d))
