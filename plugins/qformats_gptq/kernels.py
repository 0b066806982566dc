"""GPTQ on the processor: floats to codes, codes to words and back, and words to floats.

``qweight`` is a bit stream along each column of an int32 matrix ``(K * bits / 32, N)``: code ``k`` of output ``n``
lies in bits ``bits * k`` and up of column ``n``. So 32 codes are `bits` whole words for every width. 8 codes are a
number of 64 bits, an octet, which is pushed together or pulled apart in three steps of halving. Loops over 32 rows do
this with vectors, in a tile that is transposed on its way from or to the rows. Source:
AutoGPTQ:auto_gptq/nn_modules/qlinear/qlinear_cuda.py.

Weights are rounded by the rule of :class:`qformats_gptq.grid.GroupGrid`, whose codes and parameters these kernels give.

This module imports numba. Import it inside functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import float32, int32, uint8, uint32, uint64
from numpy.typing import NDArray

from qformats.errors import ConfigError, ShapeError
from qformats.kernels import cpu
from qformats.kernels.cpu import Outcome

__all__ = ["BITS", "Outcome", "dequantize", "pack", "quantize", "unpack"]

BITS = (2, 3, 4, 8)
"""Code widths."""

_STEP = 32
"""Codes that are whole words in every width, and rows of a tile."""
_OCTETS = 8
"""Numbers of 8 codes each in a row of a tile: what it reads and writes are whole cache lines."""


def _steps(bits: int) -> NDArray[np.uint64]:
    """Masks and shifts of three steps that push 8 codes together, by halving: ``(3, 3)``."""
    steps = []
    for width, kept in ((8, bits), (16, 2 * bits), (32, 4 * bits)):
        low = sum(((1 << kept) - 1) << at for at in range(0, 64, 2 * width))
        steps.append((low, low << kept, width - kept))
    return np.array(steps, np.uint64)


@cpu.jit(inline="code")
def _join(codes: Any, steps: Any) -> Any:
    """Push 8 codes together."""
    for step in range(3):
        shifted = uint64(uint64(codes >> steps[step, 2]) & steps[step, 1])
        codes = uint64(uint64(codes & steps[step, 0]) | shifted)
    return codes


@cpu.jit(inline="code")
def _split(packed: Any, steps: Any) -> Any:
    """Pull 8 codes apart; higher bits are dropped."""
    for number in range(3):
        step = 2 - number
        # The place of what was pushed: the mask moved back.
        shifted = uint64(uint64(packed & steps[step, 1]) << steps[step, 2])
        packed = uint64(uint64(packed & steps[step, 0]) | shifted)
    return packed


@cpu.jit(inline="source")
def _read_words(words: Any, first: Any, octet: Any, bits: Any, steps: Any, line: Any) -> None:
    """Read 8 codes of 32 rows."""
    start = 8 * bits * octet
    at, shift = start >> 5, uint64(start & 31)
    above = at + 1 if (start & 31) + 8 * bits > 32 else at
    lower, upper = words[at, first : first + 32], words[above, first : first + 32]
    for r in range(cpu.block_length(line)):
        both = uint64(uint64(lower[r]) | uint64(uint64(upper[r]) << uint64(32)))
        line[r] = _split(uint64(both >> shift), steps)


@cpu.jit(inline="source")
def _turn(source: Any, target: Any) -> None:
    """Transpose a tile, or its beginning; of loops whose length is spelled out LLVM makes plain moves."""
    if source.shape[0] == 8:
        for r in range(source.shape[1]):
            for number in range(8):
                target[r, number] = source[number, r]
    elif source.shape[1] == 8:
        for r in range(source.shape[0]):
            for number in range(8):
                target[number, r] = source[r, number]
    else:
        for r in range(source.shape[1]):
            for number in range(source.shape[0]):
                target[r, number] = source[number, r]


@cpu.jit()
def _pack(octets: Any, words: Any, bits: Any, steps: Any) -> None:
    size = 8 * bits
    tile = np.empty((_OCTETS, _STEP), np.uint64)
    for first in range(0, octets.shape[0], _STEP):
        for start in range(0, octets.shape[1], _OCTETS):
            part = octets[first : first + _STEP, start : start + _OCTETS]
            _turn(part, tile)
            for number in range(part.shape[1]):
                line = tile[number]
                for r in range(cpu.block_length(line)):
                    line[r] = _join(line[r], steps)
            for word in range(part.shape[1] * bits >> 2):
                # A word has bits of two octets at most; of one that has none, the shift leaves none.
                number = 32 * word // size
                left = uint64(32 * word - number * size)
                right = uint64(min(size - 32 * word + number * size, 63))
                lower, upper = tile[number], tile[min(number + 1, part.shape[1] - 1)]
                found = words[(start * size >> 5) + word, first : first + _STEP]
                for r in range(cpu.block_length(lower)):
                    found[r] = uint32(uint64(lower[r] >> left) | uint64(upper[r] << right))


@cpu.jit(inline="source")
def _unpack_rows(words: Any, first: Any, octets: Any, bits: Any, steps: Any, tile: Any) -> None:
    """Unpack 32 rows."""
    for start in range(0, octets.shape[1], _OCTETS):
        part = octets[:, start : start + _OCTETS]
        for number in range(part.shape[1]):
            _read_words(words, first, start + number, bits, steps, tile[number])
        _turn(tile[: part.shape[1]], part)


@cpu.jit()
def _unpack(words: Any, octets: Any, bits: Any, steps: Any) -> None:
    tile = np.empty((_OCTETS, _STEP), np.uint64)
    for first in range(0, octets.shape[0], _STEP):
        _unpack_rows(words, first, octets[first : first + _STEP], bits, steps, tile)


@cpu.jit()
def _dequantize(words: Any, scale: Any, zero: Any, out: Any, bits: Any, steps: Any, group: Any) -> None:
    tile = np.empty((_OCTETS, _STEP), np.uint64)
    octets = np.empty((_STEP, out.shape[1] >> 3), np.uint64)
    codes = octets.view(np.uint8)
    for first in range(0, out.shape[0], _STEP):
        _unpack_rows(words, first, octets, bits, steps, tile)
        for r in range(_STEP):
            for place in range(scale.shape[1]):
                factor, offset = scale[first + r, place], zero[first + r, place]
                found = codes[r, place * group : (place + 1) * group]
                values = out[first + r, place * group : (place + 1) * group]
                for j in range(found.size):
                    values[j] = float32(float32(float32(int32(found[j])) - offset) * factor)


@cpu.jit()
def _quantize(source: Any, codes: Any, scale: Any, zero: Any, bits: Any, group: Any, symmetric: Any) -> Any:
    top = float32((1 << bits) - 1)
    # What is beyond the codes is so far beyond that no zero point brings it back.
    limit = float32(2 * (1 << bits))
    worst, overflow = int32(0), 0
    for row in range(source.shape[0]):
        for place in range(scale.shape[1]):
            x = source[row, place * group : (place + 1) * group]
            found = codes[row, place * group : (place + 1) * group]
            # The largest magnitudes of either sign; the bits of the other sign are negative numbers.
            positive, negative = int32(0), int32(0)
            for j in range(x.size):
                value = float32(cpu.widen(x[j])).view(int32)
                positive = max(positive, value)
                negative = max(negative, int32(value ^ int32(-0x80000000)))
            largest = max(positive, negative)
            worst = max(worst, largest)
            high, low = int32(positive).view(float32), float32(-int32(negative).view(float32))
            if symmetric:
                high = int32(largest).view(float32)
                low = float32(-high)
            if low == high:
                low, high = float32(-1.0), float32(1.0)
            cpu.write(scale[row], place, float32(float32(high - low) / top))
            step = cpu.widen(scale[row, place])
            overflow += cpu.is_infinite(step)
            # Where the scale underflows, every weight is far below 0.5, and codes become the zero point.
            divisor = step if step != 0 else float32(1.0)
            middle = int32(1 << (bits - 1))
            if not symmetric:
                steps = float32(float32(-low) / divisor)
                steps = steps if steps < top else top
                middle = cpu.nearest(steps if steps > 0 else float32(0.0))
                zero[row, place] = uint8(middle)
            offset = float32(middle)
            for j in range(x.size):
                steps = float32(cpu.widen(x[j]) / divisor)
                steps = steps if steps < limit else limit
                steps = steps if steps > -limit else float32(-limit)
                level = float32(float32(cpu.nearest(steps)) + offset)
                level = level if level < top else top
                found[j] = uint8(int32(level if level > 0 else float32(0.0)))
    return -1 if worst >= int32(cpu.F32_INF) else overflow


def _check(bits: int, words: NDArray[np.int32], by_row: NDArray[Any], what: str, dtype: str) -> None:
    if bits not in BITS:
        raise ConfigError("bits", bits, "one of " + ", ".join(map(str, BITS)))
    shape = by_row.shape
    if len(shape) != 2 or shape[0] % 32 or shape[1] % 32 or by_row.dtype.name != dtype:
        raise ShapeError(what, f"{shape} of {by_row.dtype}", f"(N, K) of {dtype}, multiples of 32")
    expected = (shape[1] * bits // 32, shape[0])
    if words.shape != expected or words.dtype.name != "int32":
        raise ShapeError("qweight", f"{words.shape} of {words.dtype}", f"{expected} of int32")
    if not by_row.flags.c_contiguous or not words.flags.c_contiguous:
        raise ShapeError(what, f"strides {by_row.strides}", "C-contiguous arrays")


def pack(bits: int, codes: NDArray[np.uint8], words: NDArray[np.int32]) -> None:
    """Codes to words.

    Parameters
    ----------
    bits : int
        One of :data:`BITS`.
    codes : ndarray
        uint8, ``(N, K)``, C-contiguous, both multiples of 32; of larger codes the lowest bits count.
    words : ndarray
        int32, ``(K * bits / 32, N)``, C-contiguous; overwritten.

    Raises
    ------
    ShapeError, ConfigError
        If the arguments do not fit together.
    """
    _check(bits, words, codes, "codes", "uint8")
    _pack(cpu.for_reading(codes.view("<u8")), words.view(np.uint32), bits, _steps(bits))


def unpack(bits: int, words: NDArray[np.int32], codes: NDArray[np.uint8]) -> None:
    """Words to codes, the inverse of :func:`pack`; `codes` is overwritten.

    Raises
    ------
    ShapeError, ConfigError
        If the arguments do not fit together.
    """
    _check(bits, words, codes, "codes", "uint8")
    _unpack(cpu.for_reading(words.view(np.uint32)), codes.view("<u8"), bits, _steps(bits))


def dequantize(
    bits: int,
    words: NDArray[np.int32],
    scale: NDArray[np.float32],
    zero: NDArray[np.float32],
    group: int,
    out: NDArray[np.float32],
) -> None:
    """Words to floats, ``scale * (code - zero)``.

    Parameters
    ----------
    bits : int
        One of :data:`BITS`.
    words : ndarray
        int32, ``(K * bits / 32, N)``, C-contiguous.
    scale, zero : ndarray
        float32, ``(N, ceil(K / group))``, C-contiguous.
    group : int
        Columns of a group, a multiple of 32.
    out : ndarray
        float32, ``(N, K)``, C-contiguous; overwritten.

    Raises
    ------
    ShapeError, ConfigError
        If the arguments do not fit together.
    """
    _check(bits, words, out, "out", "float32")
    if group < 1 or group % _STEP:
        raise ConfigError("group", group, f"a multiple of {_STEP}")
    groups = -(-out.shape[1] // group)
    for name, values in (("scale", scale), ("zero", zero)):
        shape = (out.shape[0], groups)
        if values.shape != shape or values.dtype != np.float32 or not values.flags.c_contiguous:
            raise ShapeError(name, f"{values.shape} of {values.dtype}", f"{shape} of float32, C-contiguous")
    _dequantize(*map(cpu.for_reading, (words.view(np.uint32), scale, zero)), out, bits, _steps(bits), group)


def quantize(
    bits: int,
    source: NDArray[Any],
    group: int,
    codes: NDArray[np.uint8],
    scale: NDArray[Any],
    zero: NDArray[np.uint8] | None,
) -> Outcome:
    """Round weights by the reference rule.

    Parameters
    ----------
    bits : int
        One of :data:`BITS`.
    source : ndarray
        float32, float16, or uint16 (bf16 bits), ``(N, K)``, C-contiguous; may be read-only.
    group : int
        Columns of a group; the last one may be short.
    codes : ndarray
        uint8, ``(N, K)``; overwritten.
    scale : ndarray
        float32, float16, or uint16 (bf16 bits), ``(N, ceil(K / group))``; overwritten.
    zero : ndarray or None
        uint8, shape of `scale`; overwritten. ``None`` for a symmetric grid.

    Returns
    -------
    Outcome
        Non-finite inputs, and groups whose scale overflowed.

    Raises
    ------
    ShapeError, ConfigError
        If the arguments do not fit together.

    Notes
    -----
    Runs on the calling thread without the GIL.
    """
    if bits not in BITS or group < 1:
        raise ConfigError("bits and group", (bits, group), "one of 2, 3, 4, 8, and 1 column or more")
    cpu.float_kind(source.dtype, "dtype of the weights")
    cpu.float_kind(scale.dtype, "dtype of the scales")
    shape = (source.shape[0], -(-source.shape[1] // group))
    parts: list[tuple[str, NDArray[Any], tuple[int, ...]]] = [
        ("source", source, source.shape),
        ("codes", codes, source.shape),
        ("scale", scale, shape),
    ]
    if zero is not None:
        parts.append(("zero", zero, shape))
    for what, array, wanted in parts:
        if array.shape != wanted or len(wanted) != 2 or not array.flags.c_contiguous:
            raise ShapeError(what, array.shape, f"{wanted}, C-contiguous")
    # On a symmetric grid the kernel leaves zero points alone.
    points = np.empty((0, 0), np.uint8) if zero is None else zero
    values, steps = cpu.for_reading(source), cpu.for_writing(scale)
    overflow = int(_quantize(values, codes, steps, points, bits, group, zero is None))
    if overflow < 0:
        return Outcome(cpu.count_nonfinite(source), 0)
    return Outcome(0, overflow)
