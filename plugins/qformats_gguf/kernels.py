"""Encoders of GGUF's simple block types, for the processor; decoding is in :mod:`qformats_gguf.rows`.

All five types cut a row into blocks of 32 elements. Bytes equal those of llama.cpp:ggml/src/ggml-quants.c
(``quantize_row_*_ref``, x86-64 build), bit for bit, ties and subnormal scales included: the same float32
operations in the same order, never fused. Layouts: ggml/src/ggml-common.h. Byte j of the nibbles holds
element j in its low half and element j + 16 in its high half; fifth bits form one little-endian uint32, bit j
for element j.

This module imports numba. Import it inside functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import float32, int32, uint8, uint16, uint32, uint64
from numpy.typing import NDArray

from qformats.errors import ShapeError, UnknownFormatError
from qformats.kernels import cpu
from qformats.kernels.cpu import Outcome
from qformats_gguf import rows
from qformats_gguf.blocks import BLOCK, LAYOUTS, TYPES, BlockLayout

__all__ = ["Outcome", "dequantize", "quantize", "quantize_codes"]


@cpu.jit(inline="code")
def _inverse(d: Any) -> Any:
    """1/d; 0 where d is 0 or so small that 1/d is infinite."""
    inverse = float32(float32(1.0) / d)
    return float32(0.0) if cpu.is_infinite(inverse) else inverse


@cpu.jit(inline="code")
def put_half(block: Any, place: Any, half: Any) -> None:
    """Write the bits of a float16."""
    block[place], block[place + 1] = uint8(half), uint8(half >> 8)


@cpu.jit(inline="code")
def get_half(block: Any, place: Any) -> Any:
    """Read the bits of a float16."""
    return uint16(block[place] | (uint16(block[place + 1]) << 8))


@cpu.jit(inline="code")
def _put_rounded(block: Any, place: Any, value: Any) -> Any:
    """Write a value as float16; tell whether it is too large."""
    half = cpu.f32_to_f16(value)
    put_half(block, place, half)
    return (half & 0x7FFF) >= 0x7C00


@cpu.jit(inline="code")
def put_nibbles(codes: Any, target: Any) -> None:
    """Write the lower 4 bits of 32 codes."""
    for j in range(cpu.block_length(codes) >> 1):
        target[j] = uint8(uint8(codes[j] & uint8(15)) | uint8(codes[j + 16] << uint8(4)))


@cpu.jit(inline="code")
def fifth_bits(word: Any) -> Any:
    """Gather bit 4 of the 8 bytes of a word."""
    ones = uint64(uint64(word >> uint64(4)) & uint64(0x0101010101010101))
    # The product moves bit 0 of byte i to bit 56 + i.
    return uint8(uint64(ones * uint64(0x0102040810204080)) >> uint64(56))


@cpu.jit(inline="source")
def _first_is_negative(x: Any, magnitude: Any) -> Any:
    """Tell whether the first value with these magnitude bits has its sign bit set."""
    first = int32(64)
    for j in range(cpu.block_length(x)):
        bits = float32(cpu.widen(x[j])).view(uint32)
        place = int32(int32(int32(j) << int32(1)) | int32(uint32(bits >> uint32(31))))
        first = min(first, place if uint32(bits & uint32(0x7FFFFFFF)) == uint32(magnitude) else int32(64))
    return (first & 1) != 0


# The three kernels that follow write whole blocks. With an array `kept` they write codes there, a byte each, and of the
# blocks only the halves that come first: numba compiles a kernel for either.


@cpu.jit()
def _quantize_signed(source: Any, out: Any, kept: Any, bits: Any, codes_at: Any) -> Any:
    """q4_0, q5_0: the extreme value, whatever its sign, gets code 0; d = extreme / -8 (or -16)."""
    half = float32(1 << (bits - 1))
    step, last = float32(float32(1.0) / half), int32((1 << bits) - 1)
    own = np.empty(source.shape[1], np.uint8)
    words = own.view(np.uint64)
    worst, overflow = int32(0), 0
    for number in range(source.shape[0]):
        x, block = source[number], out[number]
        codes = own if kept is None else kept[number]
        # The largest magnitudes of either sign; the bits of the other sign are negative numbers.
        positive, negative = int32(0), int32(0)
        for j in range(cpu.block_length(x)):
            value = float32(cpu.widen(x[j])).view(int32)
            positive = max(positive, value)
            negative = max(negative, int32(value ^ int32(-0x80000000)))
        largest = max(positive, negative)
        worst = max(worst, largest)
        minus = negative > positive
        # Of +a and -a the first one counts; all zeros count as +0, whatever their signs.
        if negative == positive and largest != 0:
            minus = _first_is_negative(x, largest)
        d = float32(int32(largest).view(float32) * step)
        d = d if minus else float32(-d)
        overflow += _put_rounded(block, 0, d)
        inverse = _inverse(d)
        # C converts x * inf to an int8 where 1/d is infinite; x86 makes that 0.
        offset = float32(0.0) if inverse == 0 and d != 0 else float32(half + float32(0.5))
        for j in range(cpu.block_length(x)):
            code = int32(float32(float32(cpu.widen(x[j]) * inverse) + offset))
            codes[j] = uint8(min(code, last))
        if kept is None:
            put_nibbles(codes, block[codes_at:])
            if bits == 5:
                for j in range(4):
                    block[codes_at - 4 + j] = fifth_bits(words[j])
    return -1 if worst >= int32(cpu.F32_INF) else overflow


@cpu.jit(inline="code")
def _ordered(value: Any) -> Any:
    """Map the bits of floats to integers of the same order, -0 before +0, and back."""
    return int32(value ^ int32(int32(value >> int32(31)) & int32(0x7FFFFFFF)))


@cpu.jit()
def _quantize_minimum(source: Any, out: Any, kept: Any, bits: Any, codes_at: Any) -> Any:
    """q4_1, q5_1: d = (max - min) / 15 (or 31); codes count from the minimum."""
    steps = float32((1 << bits) - 1)
    own = np.empty(source.shape[1], np.uint8)
    words = own.view(np.uint64)
    worst, overflow = int32(0), 0
    for number in range(source.shape[0]):
        x, block = source[number], out[number]
        codes = own if kept is None else kept[number]
        low_bits, high_bits = int32(0x7FFFFFFF), int32(-0x80000000)
        for j in range(cpu.block_length(x)):
            place = _ordered(float32(cpu.widen(x[j])).view(int32))
            low_bits, high_bits = min(low_bits, place), max(high_bits, place)
        low, high = int32(_ordered(low_bits)).view(float32), int32(_ordered(high_bits)).view(float32)
        # Where -0 and +0 are the minimum, the first one is stored.
        if low == 0:
            low = float32(-0.0) if _first_is_negative(x, int32(0)) else float32(0.0)
        worst = max(worst, cpu.magnitude_bits(low), cpu.magnitude_bits(high))
        d = float32(float32(high - low) / steps)
        beyond = _put_rounded(block, 0, d)
        overflow += beyond | _put_rounded(block, 2, low)
        inverse = _inverse(d)
        for j in range(cpu.block_length(x)):
            code = int32(float32(float32(float32(cpu.widen(x[j]) - low) * inverse) + float32(0.5)))
            codes[j] = uint8(code)
        if kept is None:
            put_nibbles(codes, block[codes_at:])
            if bits == 5:
                for j in range(4):
                    block[codes_at - 4 + j] = fifth_bits(words[j])
    return -1 if worst >= int32(cpu.F32_INF) else overflow


@cpu.jit()
def _quantize_q8(source: Any, out: Any, kept: Any) -> Any:
    """q8_0: d = max|x| / 127, codes rounded half away from zero."""
    worst, overflow = int32(0), 0
    # Codes in blocks are signed; others count from the lowest level.
    middle = int32(0 if kept is None else 128)
    for number in range(source.shape[0]):
        x, block = source[number], out[number]
        largest = int32(0)
        for j in range(cpu.block_length(x)):
            largest = max(largest, cpu.magnitude_bits(cpu.widen(x[j])))
        worst = max(worst, largest)
        d = float32(int32(largest).view(float32) / float32(127.0))
        overflow += _put_rounded(block, 0, d)
        inverse = _inverse(d)
        codes = block[2:] if kept is None else kept[number]
        for j in range(cpu.block_length(x)):
            scaled = float32(cpu.widen(x[j]) * inverse)
            # The float32 just below 0.5: with 0.5 itself 0.49999997 would become 1.
            nudge = int32(int32(scaled.view(int32) & int32(-0x80000000)) | int32(0x3EFFFFFF)).view(float32)
            codes[j] = uint8(int32(int32(float32(scaled + nudge)) + middle))
    return -1 if worst >= int32(cpu.F32_INF) else overflow


def _check_floats(floats: NDArray[Any]) -> None:
    if floats.ndim != 2 or floats.shape[1] % BLOCK or not floats.flags.c_contiguous:
        raise ShapeError("floats", floats.shape, f"(rows, K), C-contiguous, K a multiple of {BLOCK}")


def _check(type_name: str, floats: NDArray[Any], packed: NDArray[np.uint8]) -> BlockLayout:
    """Check both arrays of a call; give the layout of the type."""
    if type_name not in LAYOUTS:
        raise UnknownFormatError(type_name, LAYOUTS, kind="GGUF block type")
    _check_floats(floats)
    expected = (floats.shape[0], floats.shape[1] // BLOCK * TYPES[type_name])
    if packed.shape != expected or packed.dtype != np.uint8 or not packed.flags.c_contiguous:
        found = f"{packed.shape} of {packed.dtype}"
        raise ShapeError("packed", found, f"{expected} of uint8, C-contiguous, for {type_name}")
    return LAYOUTS[type_name]


def quantize(type_name: str, source: NDArray[Any], out: NDArray[np.uint8]) -> Outcome:
    """Quantize rows to GGUF blocks, byte for byte as llama.cpp does.

    Parameters
    ----------
    type_name : str
        ``q4_0``, ``q4_1``, ``q5_0``, ``q5_1`` or ``q8_0``.
    source : ndarray
        float32, float16, or uint16 (bf16 bits), ``(rows, K)``, C-contiguous, K a multiple of 32; may be
        read-only. Halves are widened inside the kernel; nothing is copied.
    out : ndarray
        uint8, ``(rows, K / 32 * TYPES[type_name])``, C-contiguous; overwritten.

    Returns
    -------
    Outcome
        Non-finite inputs, and blocks whose parameters overflowed fp16.

    Raises
    ------
    ShapeError, ConfigError, UnknownFormatError
        If the arguments do not fit together.

    Notes
    -----
    Runs on the calling thread without the GIL. Source: llama.cpp:ggml/src/ggml-quants.c.
    """
    kind = _check(type_name, source, out)
    cpu.float_kind(source.dtype, "dtype of the weights")
    return _quantize(kind, source, out.reshape(-1, kind.size), None)


def quantize_codes(
    type_name: str, source: NDArray[Any], codes: NDArray[np.uint8], halves: NDArray[np.float16]
) -> Outcome:
    """Round rows as :func:`quantize` does, to codes in bytes of their own.

    Parameters
    ----------
    type_name, source
        As for :func:`quantize`.
    codes : ndarray
        uint8, ``(rows, K)``, C-contiguous, counted from the lowest level; overwritten.
    halves : ndarray
        float16, ``(rows, K / 32, 1)``: the scale of each block; for ``q4_1`` and ``q5_1`` ``(rows, K / 32, 2)``, the
        second one the minimum. C-contiguous; overwritten.

    Returns
    -------
    Outcome
        See :func:`quantize`.

    Raises
    ------
    ShapeError, ConfigError, UnknownFormatError
        If the arguments do not fit together.
    """
    if type_name not in LAYOUTS:
        raise UnknownFormatError(type_name, LAYOUTS, kind="GGUF block type")
    kind = LAYOUTS[type_name]
    _check_floats(source)
    cpu.float_kind(source.dtype, "dtype of the weights")
    rows, columns = source.shape
    wanted = (
        ("codes", codes, source.shape, np.uint8),
        (
            "halves",
            halves,
            (rows, columns // BLOCK, 1 + kind.minimum),
            np.float16,
        ),
    )
    for what, array, shape, dtype in wanted:
        if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
            found = f"{array.shape} of {array.dtype}"
            raise ShapeError(what, found, f"{shape} of {np.dtype(dtype)}, C-contiguous, for {type_name}")
    stored = halves.view(np.uint8).reshape(-1, 2 + 2 * kind.minimum)
    return _quantize(kind, source, stored, codes.reshape(-1, BLOCK))


def _quantize(
    kind: BlockLayout, source: NDArray[Any], blocks: NDArray[np.uint8], kept: NDArray[np.uint8] | None
) -> Outcome:
    """Run the kernel of a type, see above `_quantize_signed`."""
    values = cpu.for_reading(source, (source.size // BLOCK, BLOCK))
    if kind.bits == 8:
        overflow = int(_quantize_q8(values, blocks, kept))
    else:
        kernel = _quantize_minimum if kind.minimum else _quantize_signed
        overflow = int(kernel(values, blocks, kept, kind.bits, kind.codes_at))
    if overflow < 0:
        return Outcome(cpu.count_nonfinite(source), 0)
    return Outcome(0, overflow)


def dequantize(type_name: str, packed: NDArray[np.uint8], out: NDArray[Any]) -> None:
    """Decode GGUF blocks into floats.

    Parameters
    ----------
    type_name : str
        ``q4_0``, ``q4_1``, ``q5_0``, ``q5_1`` or ``q8_0``.
    packed : ndarray
        uint8, ``(rows, K / 32 * TYPES[type_name])``, C-contiguous; may be read-only.
    out : ndarray
        float32, float16, or uint16 (bf16 bits), ``(rows, K)``, C-contiguous; overwritten. Halves are one
        rounding (to nearest, ties to even) of the float32 value.

    Raises
    ------
    ShapeError, ConfigError, UnknownFormatError
        If the arguments do not fit together.

    Notes
    -----
    Value ``d * q`` or ``d * q + m`` in float32, the product being exact. Runs on the calling thread without
    the GIL.
    """
    _check(type_name, out, packed)
    rows.decode(type_name, packed, out)
