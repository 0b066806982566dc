"""Loops over packed rows for all types without a table, compiled for each type with that type's numbers in its code.

*Decoding* writes values: float32 ``scale * code + shift``, the same operations as llama.cpp's, none fused.
*Multiplying* adds up codes times inputs in float32, then multiplies by their scale; shifts meet sums of inputs. Up to
the order of float32 sums that is the product with decoded values.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np
from numpy import float32, uint8, uint16, uint32
from numpy.typing import NDArray

from qformats.interfaces import RowProducts
from qformats.kernels import cpu, vectors
from qformats.kernels.vectors import (
    LANES,
    both,
    bytes_at,
    chosen,
    either,
    floats,
    floats_at,
    left,
    less,
    madd,
    plus,
    put_floats,
    right,
    signed,
    splat,
    times,
    total,
    word_at,
    zeros,
)
from qformats_gguf import blocks, types
from qformats_gguf.rows import scales
from qformats_gguf.rows.scales import CODINGS, row_scales
from qformats_gguf.superblocks import layout
from qformats_gguf.superblocks.layout import LAYOUTS

__all__ = ["NAMES", "decode", "products"]

_FIFTH = -1
"""In place of a second plane's width: fifth bits lie in one word, bit j for element j."""


@cpu.jit(inline="code")
def _values(
    stored: Any,
    here: Any,
    place: Any,
    byte: Any,
    moved: Any,
    fifth: Any,
    zero: Any,
    minimum: Any,
    width: Any,
    high_width: Any,
    high_stride: Any,
    high_at: Any,
) -> Any:
    """Codes of the 16 elements from `place` on, as floats: their lower bits are in `byte` and those behind it."""
    code = both(right(bytes_at(stored, byte), uint8(moved)), uint8((1 << width) - 1))
    if high_width == _FIFTH:
        code = either(code, chosen(uint16(fifth >> uint32(place)), uint8(16)))
    elif high_width:
        # The order of codes in a plane is told in qformats_gguf.superblocks.layout.
        n, rest = divmod(place, high_stride * (8 // high_width))
        high = bytes_at(stored, here + high_at + n * high_stride + rest % high_stride)
        bits = both(right(high, uint8(rest // high_stride * high_width)), uint8((1 << high_width) - 1))
        code = either(code, left(bits, uint8(width)))
    return floats(code) if minimum else signed(less(code, uint8(zero)))


@cpu.jit(inline="code")
def _decoded(value: Any, scale: Any, shift: Any, minimum: Any) -> Any:
    product = times(value, splat(scale))
    return plus(product, splat(shift)) if minimum else product


@cpu.jit(inline="code")
def _sums(x: Any, sub: Any) -> Any:
    """Sums of the inputs that share a scale; zeros behind them."""
    found = np.zeros(x.size // sub + LANES, float32)
    for number in range(x.size // sub):
        for j in range(sub):
            found[number] += x[number * sub + j]
    return found


@cpu.jit(inline="code")
def _loop(
    decoding: Any,
    stored: Any,
    columns: Any,
    x: Any,
    line: Any,
    out: Any,
    start: Any,
    stop: Any,
    block: Any,
    size: Any,
    sub: Any,
    coding: Any,
    scales_at: Any,
    d_at: Any,
    minimum: Any,
    zero: Any,
    width: Any,
    stride: Any,
    codes_at: Any,
    high_width: Any,
    high_stride: Any,
    high_at: Any,
) -> None:
    """Decode rows `start` to `stop` to `out`, ``(N K,)``, or multiply them with `x` to `out`, ``(N,)``.

    Decoding writes values to `line`, float32: either all of them, or a row, which is then rounded to `out`. The
    arguments from `block` on are those that :func:`_numbers` gives.

    The numbers are passed on one by one: through tuples LLVM lost sight of them, and q4_k took 1.3 times as long.
    """
    count, together = columns // block, 8 // width
    sums = _sums(x, sub) if minimum and not decoding else x
    by_row = line.size == columns
    words = np.zeros(count + LANES, uint32)
    outer, lower = np.empty(count + LANES, float32), np.empty(count + LANES, float32)
    scale, shift = np.empty(columns // sub + LANES, float32), np.zeros(columns // sub + LANES, float32)
    for row in range(start, stop):
        at, written = row * count * size, 0 if by_row else row * columns
        row_scales(
            stored, at, count, size, coding, scales_at, d_at, minimum, words, outer, lower, scale, shift
        )
        found = zeros()
        if minimum and not decoding:
            for b in range(0, columns // sub, LANES):
                found = madd(floats_at(shift, b), floats_at(sums, b), found)
        for b in range(count):
            here, first = at + b * size, b * block
            fifth = word_at(stored, here + high_at) if high_width == _FIFTH else uint32(0)
            if stride < sub:
                # One scale for all of the block, whose halves share bytes.
                part = zeros()
                for t in range(together):
                    byte, place = here + codes_at, first + 16 * t
                    value = _values(
                        *(stored, here, 16 * t, byte, t * width, fifth),
                        *(zero, minimum, width, high_width, high_stride, high_at),
                    )
                    if decoding:
                        put_floats(line, written + place, _decoded(value, scale[b], shift[b], minimum))
                    else:
                        part = madd(value, floats_at(x, place), part)
                found = madd(splat(scale[b]), part, found)
            else:
                for n in range(block // (stride * together)):
                    for t in range(together):
                        for c in range(0, stride, sub):
                            within = (n * together + t) * stride + c
                            byte, group = here + codes_at + n * stride + c, (first + within) // sub
                            part = zeros()
                            for i in range(0, sub, 16):
                                value = _values(
                                    *(stored, here, within + i, byte + i, t * width, fifth),
                                    *(zero, minimum, width, high_width, high_stride, high_at),
                                )
                                place = first + within + i
                                if decoding:
                                    put_floats(
                                        line,
                                        written + place,
                                        _decoded(value, scale[group], shift[group], minimum),
                                    )
                                else:
                                    part = madd(value, floats_at(x, place), part)
                            found = madd(splat(scale[group]), part, found)
        if decoding and by_row:
            target = out[row * columns : (row + 1) * columns]
            for i in range(target.size):
                cpu.write(target, i, line[i])
        if not decoding:
            out[row] = total(found)


def _numbers(name: str) -> tuple[int, ...]:
    """Of a type: arguments of :func:`_multiply` from `block` on."""
    if name in blocks.LAYOUTS:
        simple = blocks.LAYOUTS[name]
        # Codes of 8 bits are signed, others count from the lowest level.
        zero = 0 if simple.minimum or simple.bits == 8 else 1 << (simple.bits - 1)
        width, fifth = min(simple.bits, 8 if simple.bits == 8 else 4), _FIFTH if simple.fifth else 0
        codes = (width, blocks.BLOCK * width // 8, simple.codes_at, fifth, 1, simple.codes_at - 4)
        return blocks.BLOCK, simple.size, blocks.BLOCK, 0, 0, 0, int(simple.minimum), zero, *codes
    kind = LAYOUTS[name]
    (_, width, stride, codes_at), *more = kind.planes
    _, *high = more[0] if more else (0, 0, 1, 0)
    coded = (CODINGS.index(kind.coding), kind.at("scales"), kind.at("d"), int(kind.minimum))
    return kind.block, kind.size, kind.sub, *coded, kind.zero, width, stride, codes_at, *high


_MODULES = (vectors.__file__, scales.__file__, blocks.__file__, layout.__file__, types.__file__)


def _multiplying(name: str) -> Any:
    numbers = _numbers(name)

    # To numba `numbers` is a constant, and so are its elements to LLVM, which copies the loop to here.
    @cpu.jit(*_MODULES)
    def multiply(stored: Any, x: Any, out: Any, start: Any, stop: Any) -> None:
        _loop(False, stored, x.size, x, x, out, start, stop, *numbers)

    return multiply


def _decoding(name: str) -> Any:
    numbers = _numbers(name)

    @cpu.jit(*_MODULES)
    def decode(stored: Any, columns: Any, line: Any, out: Any) -> None:
        _loop(True, stored, columns, line, line, out, 0, out.size // columns, *numbers)

    return decode


NAMES = (*blocks.LAYOUTS, *(name for name, kind in LAYOUTS.items() if not kind.table))
"""Types that these loops read."""
_multiply, _decode = cache(_multiplying), cache(_decoding)


def products(name: str, blocks: NDArray[np.uint8]) -> RowProducts:
    """What multiplies the rows of a matrix with a vector, see :meth:`qformats.Packer.row_products`.

    Parameters
    ----------
    name : str
        Type of the blocks, one of `NAMES`.
    blocks : ndarray
        uint8, ``(rows, bytes of a row)``, C-contiguous; not copied.
    """
    return partial(_multiply(name), cpu.for_reading(blocks, (blocks.size,)))


def decode(name: str, blocks: NDArray[np.uint8], out: NDArray[Any]) -> None:
    """Values of packed rows.

    Parameters
    ----------
    name : str
        Type of the blocks, one of `NAMES`.
    blocks : ndarray
        uint8, ``(rows, bytes of a row)``, C-contiguous.
    out : ndarray
        float32, float16 or uint16 (bf16 bits), ``(rows, K)``, C-contiguous; overwritten. Halves are one rounding of the
        float32 value.

    Raises
    ------
    ConfigError
        If the dtype is another one.
    """
    cpu.float_kind(out.dtype, "dtype of the output")
    if not out.size:
        return
    flat, columns = cpu.for_writing(out, (out.size,)), out.shape[1]
    line = flat if out.dtype == np.float32 else np.empty(columns, np.float32)
    _decode(name)(cpu.for_reading(blocks, (blocks.size,)), columns, line, flat)
