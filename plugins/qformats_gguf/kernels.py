"""Encoders and decoders of GGUF's simple block types, for the processor.

All five types cut a row into blocks of 32 elements. Bytes equal those of llama.cpp:ggml/src/ggml-quants.c
(``quantize_row_*_ref``, x86-64 build), bit for bit, ties and subnormal scales included: the same float32
operations in the same order, never fused. Layouts: ggml/src/ggml-common.h. Byte j of the nibbles holds
element j in its low half and element j + 16 in its high half; fifth bits form one little-endian uint32, bit j
for element j.

This module imports numba. Import it inside functions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from qformats.errors import ShapeError, UnknownFormatError
from qformats.kernels import cpu, lanes
from qformats.kernels.cpu import Outcome
from qformats.kernels.lanes import I64, Lanes

__all__ = ["BLOCK", "LAYOUTS", "TYPES", "BlockLayout", "Outcome", "dequantize", "quantize"]

BLOCK = 32
_SIGN = 0x80000000
_I8, _I16, _I32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)


@dataclass(frozen=True)
class BlockLayout:
    """One block type: bits of a code, and whether blocks store a minimum (fp16, behind the fp16 scale)."""

    bits: int
    minimum: bool = False

    @property
    def fifth(self) -> bool:
        """Whether fifth bits lie in a word before the nibbles."""
        return self.bits == 5

    @property
    def codes_at(self) -> int:
        """Byte of a block at which its codes begin."""
        return 2 + 2 * self.minimum + 4 * self.fifth

    @property
    def size(self) -> int:
        """Bytes of a block."""
        return self.codes_at + (32 if self.bits == 8 else 16)


LAYOUTS = {
    "q4_0": BlockLayout(4),
    "q4_1": BlockLayout(4, minimum=True),
    "q5_0": BlockLayout(5),
    "q5_1": BlockLayout(5, minimum=True),
    "q8_0": BlockLayout(8),
}
TYPES = {name: kind.size for name, kind in LAYOUTS.items()}
"""Bytes of one block, by type name."""
_ORDER = tuple(LAYOUTS.values())


def _first_is_negative(x: Lanes, chosen: Lanes) -> Lanes:
    """Tell whether the first lane that `chosen` marks has its sign bit set."""
    marks = chosen.mask()
    first = marks & (marks.full(0) - marks)
    return (x.bits().ge(_SIGN).mask() & first).eq(0).where(marks.full(0), marks.full(_SIGN))


def _inverse(d: Lanes) -> tuple[Lanes, Lanes]:
    """Give 1/d, 0 where d is 0 or so small that 1/d is infinite, and whether the latter was the case."""
    inverse = d.full(1.0) / d
    infinite = (inverse.bits() & 0x7FFFFFFF).ge(lanes.F32_INF)
    tiny = infinite & (d.eq(0.0) ^ 1)
    return infinite.where(d.full(0.0), inverse), tiny


def _encode_signed(x: Lanes, kind: BlockLayout) -> tuple[Lanes, Lanes]:
    """q4_0, q5_0: the extreme value, whatever its sign, gets code 0; d = extreme / -8 (or -16)."""
    half = 1 << (kind.bits - 1)
    magnitudes = x.bits() & 0x7FFFFFFF
    largest = magnitudes.fold(Lanes.max)
    # Of +a and -a the first one counts; all zeros count as +0, whatever their signs.
    sign = largest.eq(0).where(largest.full(0), _first_is_negative(x, magnitudes.eq(largest)))
    d = ((largest.floats() * (1.0 / half)).bits() | (sign ^ _SIGN)).floats()
    inverse, tiny = _inverse(d)
    # C converts x * inf to an int8 here; x86 makes that 0.
    offset = tiny.where(d.full(0.0), d.full(half + 0.5))
    codes = (x * inverse + offset).toward_zero()
    return codes.min(codes.full(2 * half - 1)), lanes.parameters(d)


def _encode_minimum(x: Lanes, kind: BlockLayout) -> tuple[Lanes, Lanes]:
    """q4_1, q5_1: d = (max - min) / 15 (or 31); codes count from the minimum."""
    low = x.fold(Lanes.min)
    high = x.fold(Lanes.max)
    # Of equal zeros both folds keep the same one, so that a block of zeros has d = +0, not -0.
    d = (high - low) / float((1 << kind.bits) - 1)
    inverse, _ = _inverse(d)
    codes = ((x - low) * inverse + 0.5).toward_zero()
    # Where -0 and +0 are the minimum, the first one is stored.
    sign = _first_is_negative(x, x.eq(low))
    minimum = ((low.bits() & 0x7FFFFFFF) | sign).floats()
    return codes, lanes.parameters(d, minimum)


def _encode_q8(x: Lanes, kind: BlockLayout) -> tuple[Lanes, Lanes]:
    """q8_0: d = max|x| / 127, codes rounded half away from zero."""
    largest = (x.bits() & 0x7FFFFFFF).fold(Lanes.max)
    d = largest.floats() / 127.0
    inverse, _ = _inverse(d)
    scaled = x * inverse
    # The float32 just below 0.5: with 0.5 itself 0.49999997 would become 1.
    nudge = ((scaled.bits() & _SIGN) | 0x3EFFFFFF).floats()
    return (scaled + nudge).toward_zero(), lanes.parameters(d)


def _emit_quantize(
    builder: Any, kind: BlockLayout, source_kind: int, source: Any, target: Any
) -> tuple[Lanes, Lanes]:
    """Encode one block; give the magnitude bits of its values (uint32 lanes) and whether its scales fit."""
    x = cpu.load_floats(builder, source_kind, source, BLOCK)
    if kind.bits == 8:
        codes, values = _encode_q8(x, kind)
        lanes.store(codes.resize(8), target, kind.codes_at)
    else:
        codes, values = (_encode_minimum if kind.minimum else _encode_signed)(x, kind)
        low, high = codes.part(0, 16), codes.part(16, 16)
        if kind.fifth:
            fifth = (codes & 16).eq(16).mask()
            lanes.store(fifth, target, kind.codes_at - 4)
            low = low & 15
        # The bits of `high` above the byte are cut off with the rest of the word.
        lanes.store((low | (high << 4)).resize(8), target, kind.codes_at)
    halves = lanes.narrow_f16(values)
    lanes.store(halves, target, 0)
    overflow = (halves & 0x7FFF).ge(lanes.F16_INF).mask()
    return x.bits() & 0x7FFFFFFF, overflow.eq(0)


def _quantize_typer(
    typingctx: Any, number: Any, source_kind: Any, stamp: Any, source: Any, target: Any, count: Any
) -> Any:
    kind, floats = _ORDER[number.literal_value], source_kind.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, _, _, origin, destination, blocks = args
        words = ir.VectorType(_I32, BLOCK)
        worst = cpu.variable(builder, ir.Constant(words, [0] * BLOCK))
        overflows = cpu.variable(builder, I64(0))
        stride = BLOCK * (4 if floats == 0 else 2)
        with cgutils.for_range(builder, blocks) as loop:
            at = builder.add(origin, builder.mul(loop.index, I64(stride)))
            to = builder.add(destination, builder.mul(loop.index, I64(kind.size)))
            magnitudes, fits = _emit_quantize(builder, kind, floats, at, to)
            builder.store(magnitudes.max(Lanes(builder, builder.load(worst))).value, worst)
            overflow = builder.zext(builder.not_(fits.value), I64)
            builder.store(builder.add(builder.load(overflows), overflow), overflows)
        largest = Lanes(builder, builder.load(worst)).fold(Lanes.max)
        # One number for both: negative if anything was not finite, else the count of blocks that overflowed.
        result = largest.lt(lanes.F32_INF).where(
            Lanes(builder, builder.load(overflows)), Lanes(builder, I64(-1))
        )
        return result.value

    return types.int64(number, source_kind, stamp, types.int64, types.int64, types.int64), codegen


def _emit_dequantize(builder: Any, kind: BlockLayout, source: Any) -> Lanes:
    """Decode one block into 32 lanes of float32."""
    d = lanes.widen_f16(lanes.load(builder, source, 0, _I16))
    if kind.bits == 8:
        return lanes.load(builder, source, kind.codes_at, _I8, BLOCK).sign_extend(32).to_float() * d
    packed = lanes.load(builder, source, kind.codes_at, _I8, 16)
    codes = (packed & 15).then(packed >> 4).resize(32)
    if kind.fifth:
        fifth = lanes.load(builder, source, kind.codes_at - 4, _I32).as_type(
            ir.VectorType(ir.IntType(1), BLOCK)
        )
        codes = codes | (fifth.resize(32) << 4)
    if kind.minimum:
        return codes.to_float() * d + lanes.widen_f16(lanes.load(builder, source, 2, _I16))
    return (codes - (1 << (kind.bits - 1))).to_float() * d


def _dequantize_typer(
    typingctx: Any, number: Any, target_kind: Any, stamp: Any, source: Any, target: Any, count: Any
) -> Any:
    kind, floats = _ORDER[number.literal_value], target_kind.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, _, _, origin, destination, blocks = args
        stride = BLOCK * (4 if floats == 0 else 2)
        with cgutils.for_range(builder, blocks) as loop:
            at = builder.add(origin, builder.mul(loop.index, I64(kind.size)))
            to = builder.add(destination, builder.mul(loop.index, I64(stride)))
            cpu.store_floats(_emit_dequantize(builder, kind, at), floats, to)
        return blocks

    return types.int64(number, target_kind, stamp, types.int64, types.int64, types.int64), codegen


_quantize_blocks: Any = intrinsic(prefer_literal=True)(_quantize_typer)
_dequantize_blocks: Any = intrinsic(prefer_literal=True)(_dequantize_typer)


@functools.cache
def _quantize_kernel(number: int, source_kind: int) -> Callable[[int, int, int], int]:
    stamp = cpu.source_stamp()

    @cpu.jit()
    def quantize_blocks(source: int, target: int, blocks: int) -> Any:
        return _quantize_blocks(number, source_kind, stamp, source, target, blocks)

    return quantize_blocks


@functools.cache
def _dequantize_kernel(number: int, target_kind: int) -> Callable[[int, int, int], int]:
    stamp = cpu.source_stamp()

    @cpu.jit()
    def dequantize_blocks(source: int, target: int, blocks: int) -> Any:
        return _dequantize_blocks(number, target_kind, stamp, source, target, blocks)

    return dequantize_blocks


def _check(type_name: str, floats: NDArray[Any], packed: NDArray[np.uint8]) -> int:
    """Check both arrays of a call; give the position of the type."""
    if type_name not in LAYOUTS:
        raise UnknownFormatError(type_name, LAYOUTS, kind="GGUF block type")
    if floats.ndim != 2 or floats.shape[1] % BLOCK or not floats.flags.c_contiguous:
        raise ShapeError("floats", floats.shape, f"(rows, K), C-contiguous, K a multiple of {BLOCK}")
    expected = (floats.shape[0], floats.shape[1] // BLOCK * TYPES[type_name])
    if packed.shape != expected or packed.dtype != np.uint8 or not packed.flags.c_contiguous:
        found = f"{packed.shape} of {packed.dtype}"
        raise ShapeError("packed", found, f"{expected} of uint8, C-contiguous, for {type_name}")
    return list(LAYOUTS).index(type_name)


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
    number = _check(type_name, source, out)
    kind = cpu.float_kind(source.dtype, "dtype of the weights")
    overflow = _quantize_kernel(number, kind)(cpu.address(source), cpu.address(out), source.size // BLOCK)
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
    number = _check(type_name, out, packed)
    kind = cpu.float_kind(out.dtype, "dtype of the output")
    _dequantize_kernel(number, kind)(cpu.address(packed), cpu.address(out), out.size // BLOCK)
