"""GLM rows on the processor: floats to packed bytes and back, in one pass over each row.

A row is ``K * bits / 8`` bytes of two's complement codes and one scale. Of a byte with two codes the high nibble
is the even column. Source: GLM-130B:cuda/quantization.cu; the rule of rounding is that of
:class:`qformats_glm.grid.RowGrid`, whose bytes these kernels give.

This module imports numba. Import it inside functions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from qformats.errors import ConfigError, ShapeError
from qformats.kernels import cpu, lanes
from qformats.kernels.cpu import Outcome
from qformats.kernels.lanes import F32, I64, Lanes

__all__ = ["Outcome", "dequantize", "pack", "quantize", "unpack"]

_WIDTH = 32
_BYTES = (4, 2, 2)
_I8, _I32 = ir.IntType(8), ir.IntType(32)


def _round_to(value: Lanes, kind: int) -> Lanes:
    """Round float32 lanes to the format ``cpu.FLOATS[kind]`` and widen them again."""
    if kind == 0:
        return value
    return (
        lanes.widen_f16(lanes.narrow_f16(value)) if kind == 1 else lanes.widen_bf16(lanes.narrow_bf16(value))
    )


def _shape(lanes_in: int) -> int:
    """Lanes of a vector; one lane is a scalar."""
    return 0 if lanes_in == 1 else lanes_in


def _join(codes: Lanes) -> Lanes:
    """Pack pairs of int8 lanes into bytes, the first of each pair in the high nibble."""
    pairs = codes.as_type(_words(codes.count // 2))
    return (((pairs & 0x0F) << 4) | ((pairs >> 8) & 0x0F)).resize(8)


def _split(packed: Lanes) -> Lanes:
    """Unpack bytes into twice as many int8 lanes with a nibble each, high nibble first."""
    wide = packed.resize(16)
    count = max(1, packed.count)
    return ((wide >> 4) | ((wide & 0x0F) << 8)).as_type(ir.VectorType(_I8, 2 * count))


def _words(count: int) -> Any:
    return ir.IntType(16) if count == 1 else ir.VectorType(ir.IntType(16), count)


def _load_codes(builder: Any, bits: int, source: Any, column: Any, count: int) -> Lanes:
    """Signed codes of `count` columns as int32 lanes."""
    if bits == 8:
        return lanes.load(builder, builder.add(source, column), 0, _I8, count).sign_extend(32)
    at = builder.add(source, builder.udiv(column, I64(2)))
    unsigned = _split(lanes.load(builder, at, 0, _I8, _shape(count // 2))).resize(32)
    return (unsigned ^ 8) - 8


def _emit_row(
    builder: Any, bits: int, kinds: tuple[int, int], columns: Any, places: tuple[Any, Any, Any]
) -> tuple[Lanes, Lanes]:
    """Quantize one row; give the largest magnitude's bits and the bits of its scale's magnitude."""
    source_kind, scale_kind = kinds
    source, target, scale_at = places
    size, top = _BYTES[source_kind], (1 << (bits - 1)) - 1
    worst = cpu.variable(builder, ir.Constant(ir.VectorType(_I32, _WIDTH), [0] * _WIDTH))
    rest = cpu.variable(builder, _I32(0))

    def values(column: Any, count: int) -> Lanes:
        return cpu.load_floats(
            builder, source_kind, builder.add(source, builder.mul(column, I64(size))), count
        )

    def measure(column: Any, count: int) -> None:
        place = worst if count else rest
        magnitudes = values(column, count).bits() & 0x7FFFFFFF
        builder.store(magnitudes.max(Lanes(builder, builder.load(place))).value, place)

    cpu.for_vectors(builder, columns, measure)
    largest = Lanes(builder, builder.load(worst)).fold(Lanes.max).max(Lanes(builder, builder.load(rest)))
    scale = _round_to(largest.floats() / float(top), source_kind)
    cpu.store_floats(scale, scale_kind, scale_at)
    scale = _round_to(scale, scale_kind)
    divisor = scale.eq(0.0).where(scale.full(1.0), scale)
    # Of two different dtypes the quotient takes the wider one, and of the two halves float32.
    quotient_kind = source_kind if source_kind == scale_kind else 0

    def encode(column: Any, count: int) -> None:
        steps = _round_to(values(column, count) / divisor, quotient_kind)
        steps = steps.min(steps.full(float(top))).max(steps.full(float(-top)))
        codes = steps.nearest().resize(8)
        if bits == 8:
            lanes.store(codes, builder.add(target, column), 0)
        else:
            lanes.store(_join(codes), builder.add(target, builder.udiv(column, I64(2))), 0)

    cpu.for_vectors(builder, columns, encode, 8 // bits)
    return largest, scale.bits() & 0x7FFFFFFF


def _quantize_typer(
    typingctx: Any,
    bits: Any,
    source_kind: Any,
    scale_kind: Any,
    stamp: Any,
    source: Any,
    target: Any,
    scales: Any,
    rows: Any,
    columns: Any,
) -> Any:
    width, kinds = bits.literal_value, (source_kind.literal_value, scale_kind.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        *_, origin, destination, scale_at, count, length = args
        worst = cpu.variable(builder, _I32(0))
        overflows = cpu.variable(builder, I64(0))
        row_bytes = builder.udiv(length, I64(8 // width))
        with cgutils.for_range(builder, count) as loop:
            places = tuple(
                builder.add(base, builder.mul(loop.index, step))
                for base, step in (
                    (origin, builder.mul(length, I64(_BYTES[kinds[0]]))),
                    (destination, row_bytes),
                    (scale_at, I64(_BYTES[kinds[1]])),
                )
            )
            largest, scale = _emit_row(builder, width, kinds, length, places)
            builder.store(largest.max(Lanes(builder, builder.load(worst))).value, worst)
            overflow = scale.ge(lanes.F32_INF).resize(64).value
            builder.store(builder.add(builder.load(overflows), overflow), overflows)
        # One number for both: negative if anything was not finite, else the count of rows that overflowed.
        finite = Lanes(builder, builder.load(worst)).lt(lanes.F32_INF)
        return finite.where(Lanes(builder, builder.load(overflows)), Lanes(builder, I64(-1))).value

    arguments = (types.int64,) * 5
    return types.int64(bits, source_kind, scale_kind, stamp, *arguments), codegen


def _dequantize_typer(
    typingctx: Any,
    bits: Any,
    target_kind: Any,
    stamp: Any,
    source: Any,
    scales: Any,
    target: Any,
    rows: Any,
    columns: Any,
) -> Any:
    width, kind = bits.literal_value, target_kind.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        *_, origin, scale_at, destination, count, length = args
        row_bytes = builder.udiv(length, I64(8 // width))
        with cgutils.for_range(builder, count) as loop:
            row = builder.add(origin, builder.mul(loop.index, row_bytes))
            to = builder.add(destination, builder.mul(loop.index, builder.mul(length, I64(_BYTES[kind]))))
            scale = lanes.load(builder, builder.add(scale_at, builder.mul(loop.index, I64(4))), 0, F32)

            def decode(
                column: Any, lanes_in: int, row: Any = row, to: Any = to, scale: Lanes = scale
            ) -> None:
                value = _load_codes(builder, width, row, column, lanes_in).to_float() * scale
                cpu.store_floats(value, kind, builder.add(to, builder.mul(column, I64(_BYTES[kind]))))

            cpu.for_vectors(builder, length, decode, 8 // width)
        return count

    arguments = (types.int64,) * 5
    return types.int64(bits, target_kind, stamp, *arguments), codegen


def _recode_typer(typingctx: Any, unpacking: Any, stamp: Any, source: Any, target: Any, count: Any) -> Any:
    to_codes = bool(unpacking.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        *_, origin, destination, length = args

        def body(column: Any, lanes_in: int) -> None:
            half = builder.udiv(column, I64(2))
            if to_codes:
                packed = lanes.load(builder, builder.add(origin, half), 0, _I8, _shape(lanes_in // 2))
                lanes.store(_split(packed) ^ 8, builder.add(destination, column), 0)
            else:
                codes = lanes.load(builder, builder.add(origin, column), 0, _I8, lanes_in)
                lanes.store(_join(codes ^ 8), builder.add(destination, half), 0)

        cpu.for_vectors(builder, length, body, 2)
        return length

    return types.int64(unpacking, stamp, types.int64, types.int64, types.int64), codegen


_quantize_rows: Any = intrinsic(prefer_literal=True)(_quantize_typer)
_dequantize_rows: Any = intrinsic(prefer_literal=True)(_dequantize_typer)
_recode_nibbles: Any = intrinsic(prefer_literal=True)(_recode_typer)


@functools.cache
def _quantize_kernel(bits: int, source_kind: int, scale_kind: int) -> Callable[..., int]:
    stamp = cpu.source_stamp()

    @cpu.jit()
    def quantize_rows(source: int, target: int, scales: int, rows: int, columns: int) -> Any:
        return _quantize_rows(bits, source_kind, scale_kind, stamp, source, target, scales, rows, columns)

    return quantize_rows


@functools.cache
def _dequantize_kernel(bits: int, target_kind: int) -> Callable[..., int]:
    stamp = cpu.source_stamp()

    @cpu.jit()
    def dequantize_rows(source: int, scales: int, target: int, rows: int, columns: int) -> Any:
        return _dequantize_rows(bits, target_kind, stamp, source, scales, target, rows, columns)

    return dequantize_rows


@functools.cache
def _recode_kernel(unpacking: int) -> Callable[[int, int, int], int]:
    stamp = cpu.source_stamp()

    @cpu.jit()
    def recode_nibbles(source: int, target: int, count: int) -> Any:
        return _recode_nibbles(unpacking, stamp, source, target, count)

    return recode_nibbles


def _check(
    bits: int, floats: NDArray[Any], packed: NDArray[np.int8], scales: NDArray[Any], scale_kinds: str
) -> None:
    if bits not in (4, 8):
        raise ConfigError("bits", bits, "4 or 8")
    if floats.ndim != 2 or not floats.flags.c_contiguous or floats.shape[1] * bits % 8:
        even = ", K even" if bits == 4 else ""
        raise ShapeError("floats", floats.shape, f"(rows, K), C-contiguous{even}")
    rows, columns = floats.shape
    for what, array, shape, dtypes in (
        ("packed", packed, (rows, columns * bits // 8), "int8"),
        ("scales", scales, (rows,), scale_kinds),
    ):
        if array.shape != shape or array.dtype.name not in dtypes or not array.flags.c_contiguous:
            raise ShapeError(what, f"{array.shape} of {array.dtype}", f"{shape} of {dtypes}, C-contiguous")


def quantize(bits: int, source: NDArray[Any], packed: NDArray[np.int8], scales: NDArray[Any]) -> Outcome:
    """Quantize rows as upstream does, clamped.

    Parameters
    ----------
    bits : int
        4 or 8.
    source : ndarray
        float32, float16, or uint16 (bf16 bits), ``(rows, K)``, C-contiguous; may be read-only. K even for 4 bits.
    packed : ndarray
        int8, ``(rows, K * bits / 8)``, C-contiguous; overwritten.
    scales : ndarray
        float32, float16, or uint16 (bf16 bits), ``(rows,)``; overwritten.

    Returns
    -------
    Outcome
        Non-finite inputs, and rows whose scale overflowed.

    Raises
    ------
    ShapeError, ConfigError
        If the arguments do not fit together.

    Notes
    -----
    Runs on the calling thread without the GIL.
    """
    _check(bits, source, packed, scales, "float32, float16 or uint16")
    kinds = (
        cpu.float_kind(source.dtype, "dtype of the weights"),
        cpu.float_kind(scales.dtype, "dtype of the scales"),
    )
    kernel = _quantize_kernel(bits, *kinds)
    overflow = kernel(cpu.address(source), cpu.address(packed), cpu.address(scales), *source.shape)
    if overflow < 0:
        return Outcome(cpu.count_nonfinite(source), 0)
    return Outcome(0, overflow)


def dequantize(bits: int, packed: NDArray[np.int8], scales: NDArray[np.float32], out: NDArray[Any]) -> None:
    """Decode rows into floats.

    Parameters
    ----------
    bits : int
        4 or 8.
    packed : ndarray
        int8, ``(rows, K * bits / 8)``, C-contiguous; may be read-only.
    scales : ndarray
        float32, ``(rows,)``.
    out : ndarray
        float32, float16, or uint16 (bf16 bits), ``(rows, K)``, C-contiguous; overwritten. Halves are one rounding of
        the float32 product.

    Raises
    ------
    ShapeError, ConfigError
        If the arguments do not fit together.
    """
    _check(bits, out, packed, scales, "float32")
    kind = cpu.float_kind(out.dtype, "dtype of the output")
    kernel = _dequantize_kernel(bits, kind)
    kernel(cpu.address(packed), cpu.address(scales), cpu.address(out), *out.shape)


def _check_nibbles(packed: NDArray[Any], codes: NDArray[Any]) -> None:
    fits = packed.ndim == 2 and codes.shape == (packed.shape[0], 2 * packed.shape[1])
    fits = fits and packed.itemsize == codes.itemsize == 1
    if not fits or not packed.flags.c_contiguous or not codes.flags.c_contiguous:
        found = f"{packed.shape} of {packed.dtype} with codes of {codes.shape}, {codes.dtype}"
        raise ShapeError(
            "packed", found, "(rows, K / 2) of int8 with codes of (rows, K), uint8, C-contiguous"
        )


def unpack(packed: NDArray[np.int8], codes: NDArray[np.uint8]) -> None:
    """Nibbles to unsigned codes: ``codes = nibble + 8``, uint8 ``(rows, K)``, overwritten.

    Raises
    ------
    ShapeError
        If the arrays do not fit together.
    """
    _check_nibbles(packed, codes)
    _recode_kernel(1)(cpu.address(packed), cpu.address(codes), codes.size)


def pack(codes: NDArray[np.uint8], packed: NDArray[np.int8]) -> None:
    """Unsigned codes to nibbles, the inverse of `unpack`.

    Raises
    ------
    ShapeError
        If the arrays do not fit together.
    """
    _check_nibbles(packed, codes)
    _recode_kernel(0)(cpu.address(codes), cpu.address(packed), codes.size)
