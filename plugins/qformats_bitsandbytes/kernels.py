"""Encoders and decoders of the bitsandbytes formats, for the processor.

Two codes of 4 bits share a byte, the first one in its high half. Blocks run over the flattened weight; every block
given to a kernel is a whole number of 32 elements, and callers fill the last one up with zeros. The arithmetic is
float32 in the order of bitsandbytes:bitsandbytes/backends/default/ops.py, never fused.

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

from qformats.errors import ConfigError, ShapeError, UnknownFormatError
from qformats.kernels import cpu, lanes
from qformats.kernels.cpu import Outcome
from qformats.kernels.lanes import I64, Lanes
from qformats_bitsandbytes import tables

__all__ = [
    "Outcome",
    "dequantize_4bit",
    "dequantize_int8",
    "pack_codes",
    "quantize_4bit",
    "quantize_int8",
    "unpack_codes",
]

_WIDTH = 32
"""Elements that are worked on together; every block size is a multiple."""
_TABLES = {"nf4": tables.NF4, "fp4": tables.FP4}
_SMALLEST = 1e-38
"""Blocks smaller than this are multiplied by its inverse, not by infinity."""
_I8, _I16, _I32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)
_PAIR = ir.VectorType(ir.FloatType(), 2)
_SIZES = (4, 2, 2)


def _magnitudes(x: Lanes) -> Lanes:
    return x.bits() & 0x7FFFFFFF


def _join(codes: Lanes) -> Lanes:
    """Put neighbouring codes (8-bit lanes) into one byte, the first one high."""
    pairs = codes.as_type(ir.VectorType(_I16, codes.count // 2))
    return ((pairs << 4) | (pairs >> 8)).resize(8)


def _split(packed: Lanes) -> Lanes:
    """Give the two codes of every byte as neighbouring 8-bit lanes."""
    wide = packed.resize(16)
    pairs = (wide >> 4) | ((wide & 15) << 8)
    return pairs.as_type(ir.VectorType(_I8, 2 * packed.count))


def _above(x: Lanes, thresholds: tuple[float, ...]) -> Lanes:
    """Count the thresholds that each value exceeds, int32 lanes."""
    count = x.bits().full(0)
    for threshold in thresholds:
        count = count + x.full(threshold).lt(x).resize(32)
    return count


def _codes(x: Lanes, kind: str) -> Lanes:
    """Codes of values in [-1, 1], int32 lanes."""
    if kind == "nf4":
        return _above(x, tables.NF4_THRESHOLDS)
    level = _above(_magnitudes(x).floats(), tables.FP4_THRESHOLDS)
    # Magnitudes ascend in the order of the codes 0 1 6 7 4 5 2 3; of the two zeros the first one is written.
    negative = x.lt(-tables.FP4_THRESHOLDS[0]).resize(32)
    return (level ^ ((level & 2) << 1)) | (negative << 3)


def _quantize_typer(
    typingctx: Any,
    kind: Any,
    source_kind: Any,
    stamp: Any,
    source: Any,
    target: Any,
    scales: Any,
    blocks: Any,
    chunks: Any,
) -> Any:
    name, floats = list(_TABLES)[kind.literal_value], source_kind.literal_value
    stride = _WIDTH * _SIZES[floats]

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, _, _, origin, destination, maxima, count, pieces = args
        worst = cpu.variable(builder, _I32(0))
        with cgutils.for_range(builder, count) as block:
            first = builder.mul(block.index, pieces)
            largest = cpu.variable(builder, ir.Constant(ir.VectorType(_I32, _WIDTH), [0] * _WIDTH))
            builder.store(ir.Constant(ir.VectorType(_I32, _WIDTH), [0] * _WIDTH), largest)

            def at(index: Any, start: Any = first) -> Any:
                return builder.add(start, index)

            with cgutils.for_range(builder, pieces) as piece:
                place = builder.add(origin, builder.mul(at(piece.index), I64(stride)))
                magnitudes = _magnitudes(cpu.load_floats(builder, floats, place, _WIDTH))
                builder.store(magnitudes.max(Lanes(builder, builder.load(largest))).value, largest)
            top = Lanes(builder, builder.load(largest)).fold(Lanes.max)
            builder.store(top.max(Lanes(builder, builder.load(worst))).value, worst)
            scale = top.floats()
            lanes.store(scale, builder.add(maxima, builder.mul(block.index, I64(4))), 0)
            inverse = scale.full(1.0) / scale.max(scale.full(_SMALLEST))
            with cgutils.for_range(builder, pieces) as piece:
                place = builder.add(origin, builder.mul(at(piece.index), I64(stride)))
                codes = _codes(cpu.load_floats(builder, floats, place, _WIDTH) * inverse, name)
                to = builder.add(destination, builder.mul(at(piece.index), I64(_WIDTH // 2)))
                lanes.store(_join(codes.resize(8)), to, 0)
        return builder.zext(Lanes(builder, builder.load(worst)).ge(lanes.F32_INF).value, I64)

    return types.int64(kind, source_kind, stamp, *(types.int64,) * 5), codegen


def _dequantize_typer(
    typingctx: Any,
    target_kind: Any,
    stamp: Any,
    table: Any,
    source: Any,
    scales: Any,
    target: Any,
    blocks: Any,
    chunks: Any,
) -> Any:
    floats = target_kind.literal_value
    stride = _WIDTH * _SIZES[floats]

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, _, pairs, origin, maxima, destination, count, pieces = args
        with cgutils.for_range(builder, count) as block:
            scale = lanes.load(
                builder, builder.add(maxima, builder.mul(block.index, I64(4))), 0, ir.FloatType()
            )
            first = builder.mul(block.index, pieces)
            with cgutils.for_range(builder, pieces) as piece:
                index = builder.add(first, piece.index)
                place = builder.add(origin, builder.mul(index, I64(_WIDTH // 2)))
                found = []
                for byte in range(_WIDTH // 2):
                    offset = builder.zext(lanes.load(builder, place, byte, _I8).value, I64)
                    entry = builder.add(pairs, builder.shl(offset, I64(3)))
                    pointer = builder.inttoptr(entry, _PAIR.as_pointer())
                    found.append(Lanes(builder, builder.load(pointer, align=8)))
                while len(found) > 1:
                    found = [a.then(b) for a, b in zip(found[::2], found[1::2], strict=True)]
                to = builder.add(destination, builder.mul(index, I64(stride)))
                cpu.store_floats(found[0] * scale, floats, to)
        return count

    return types.int64(target_kind, stamp, *(types.int64,) * 6), codegen


def _halves(builder: Any, floats: int, place: Any, width: int) -> tuple[Lanes, Lanes]:
    """Read values of any format rounded to float16: their bits (int32 lanes, without the sign), and as float32."""
    if floats == 1:
        bits = lanes.load(builder, place, 0, _I16, width)
    else:
        bits = lanes.narrow_f16(cpu.load_floats(builder, floats, place, width))
    return bits.resize(32) & 0x7FFF, lanes.widen_f16(bits)


def _quantize_int8_typer(
    typingctx: Any,
    source_kind: Any,
    stamp: Any,
    source: Any,
    target: Any,
    scales: Any,
    rows: Any,
    columns: Any,
) -> Any:
    floats = source_kind.literal_value
    size = _SIZES[floats]

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, _, origin, destination, maxima, count, width = args
        worst = cpu.variable(builder, _I32(0))
        zeros = ir.Constant(ir.VectorType(_I32, _WIDTH), [0] * _WIDTH)
        largest = {_WIDTH: cpu.variable(builder, zeros), 0: cpu.variable(builder, _I32(0))}
        with cgutils.for_range(builder, count) as row:
            first = builder.mul(row.index, width)
            builder.store(zeros, largest[_WIDTH])
            builder.store(_I32(0), largest[0])

            def measure(index: Any, lane_count: int, first: Any = first) -> None:
                place = builder.add(origin, builder.mul(builder.add(first, index), I64(size)))
                magnitudes, _ = _halves(builder, floats, place, lane_count)
                variable = largest[lane_count]
                builder.store(magnitudes.max(Lanes(builder, builder.load(variable))).value, variable)

            cpu.for_vectors(builder, width, measure)
            top = Lanes(builder, builder.load(largest[_WIDTH])).fold(Lanes.max)
            top = top.max(Lanes(builder, builder.load(largest[0])))
            builder.store(top.max(Lanes(builder, builder.load(worst))).value, worst)
            scale = lanes.widen_f16(top.resize(16))
            lanes.store(scale, builder.add(maxima, builder.mul(row.index, I64(4))), 0)
            factor = scale.eq(0.0).where(scale.full(0.0), scale.full(1.0) / scale * 127.0)

            def encode(index: Any, lane_count: int, first: Any = first, factor: Lanes = factor) -> None:
                at = builder.add(first, index)
                _, x = _halves(builder, floats, builder.add(origin, builder.mul(at, I64(size))), lane_count)
                codes = (x * factor).nearest().resize(8)
                lanes.store(codes, builder.add(destination, at), 0)

            cpu.for_vectors(builder, width, encode)
        return builder.zext(Lanes(builder, builder.load(worst)).ge(lanes.F16_INF).value, I64)

    return types.int64(source_kind, stamp, *(types.int64,) * 5), codegen


def _dequantize_int8_typer(
    typingctx: Any,
    target_kind: Any,
    stamp: Any,
    source: Any,
    scales: Any,
    target: Any,
    rows: Any,
    columns: Any,
) -> Any:
    floats = target_kind.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, _, origin, steps, destination, count, width = args
        with cgutils.for_range(builder, count) as row:
            first = builder.mul(row.index, width)
            scale = lanes.load(builder, builder.add(steps, builder.mul(row.index, I64(4))), 0, ir.FloatType())

            def decode(index: Any, lane_count: int, first: Any = first, scale: Lanes = scale) -> None:
                at = builder.add(first, index)
                codes = lanes.load(builder, builder.add(origin, at), 0, _I8, lane_count)
                to = builder.add(destination, builder.mul(at, I64(_SIZES[floats])))
                cpu.store_floats(codes.sign_extend(32).to_float() * scale, floats, to)

            cpu.for_vectors(builder, width, decode)
        return count

    return types.int64(target_kind, stamp, *(types.int64,) * 5), codegen


def _repack_typer(typingctx: Any, join: Any, stamp: Any, source: Any, target: Any, count: Any) -> Any:
    joining = bool(join.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, _, origin, destination, chunks = args
        read, write = (2 * _WIDTH, _WIDTH) if joining else (_WIDTH, 2 * _WIDTH)
        with cgutils.for_range(builder, chunks) as loop:
            place = builder.add(origin, builder.mul(loop.index, I64(read)))
            found = lanes.load(builder, place, 0, _I8, read)
            to = builder.add(destination, builder.mul(loop.index, I64(write)))
            lanes.store(_join(found) if joining else _split(found), to, 0)
        return chunks

    return types.int64(join, stamp, *(types.int64,) * 3), codegen


_quantize: Any = intrinsic(prefer_literal=True)(_quantize_typer)
_dequantize: Any = intrinsic(prefer_literal=True)(_dequantize_typer)
_quantize_rows: Any = intrinsic(prefer_literal=True)(_quantize_int8_typer)
_dequantize_rows: Any = intrinsic(prefer_literal=True)(_dequantize_int8_typer)
_repack: Any = intrinsic(prefer_literal=True)(_repack_typer)


@functools.cache
def _quantize_kernel(kind: int, floats: int) -> Callable[..., int]:
    stamp = cpu.source_stamp(tables.__file__)

    @cpu.jit()
    def quantize_blocks(source: int, target: int, scales: int, blocks: int, chunks: int) -> Any:
        return _quantize(kind, floats, stamp, source, target, scales, blocks, chunks)

    return quantize_blocks


@functools.cache
def _dequantize_kernel(floats: int) -> Callable[..., int]:
    stamp = cpu.source_stamp()

    @cpu.jit()
    def dequantize_blocks(table: int, source: int, scales: int, target: int, blocks: int, chunks: int) -> Any:
        return _dequantize(floats, stamp, table, source, scales, target, blocks, chunks)

    return dequantize_blocks


@functools.cache
def _quantize_rows_kernel(floats: int) -> Callable[..., int]:
    stamp = cpu.source_stamp()

    @cpu.jit()
    def quantize_rows(source: int, target: int, scales: int, rows: int, columns: int) -> Any:
        return _quantize_rows(floats, stamp, source, target, scales, rows, columns)

    return quantize_rows


@functools.cache
def _dequantize_rows_kernel(floats: int) -> Callable[..., int]:
    stamp = cpu.source_stamp()

    @cpu.jit()
    def dequantize_rows(source: int, scales: int, target: int, rows: int, columns: int) -> Any:
        return _dequantize_rows(floats, stamp, source, scales, target, rows, columns)

    return dequantize_rows


@functools.cache
def _repack_kernel(join: int) -> Callable[..., int]:
    stamp = cpu.source_stamp()

    @cpu.jit()
    def repack(source: int, target: int, chunks: int) -> Any:
        return _repack(join, stamp, source, target, chunks)

    return repack


@functools.cache
def _pairs(kind: str) -> NDArray[np.float32]:
    """Values of the two codes of every byte, ``(256, 2)``."""
    table = np.array(_TABLES[kind], np.float32)
    return np.ascontiguousarray(np.stack([np.repeat(table, 16), np.tile(table, 16)], axis=1))


def _check(what: str, array: NDArray[Any], shape: tuple[int, ...], dtype: type | None = None) -> None:
    if array.shape != shape or not array.flags.c_contiguous or (dtype is not None and array.dtype != dtype):
        kind = "" if dtype is None else f" of {np.dtype(dtype)}"
        raise ShapeError(what, f"{array.shape} of {array.dtype}", f"{shape}{kind}, C-contiguous")


def _check_blocks(
    kind: str, floats: NDArray[Any], packed: NDArray[Any], absmax: NDArray[Any], block_size: int
) -> int:
    """Check the arrays of a call; give the number of whole blocks."""
    if kind not in _TABLES:
        raise UnknownFormatError(kind, _TABLES, kind="4-bit type")
    if block_size < 1 or block_size % _WIDTH:
        raise ConfigError("block_size", block_size, f"a multiple of {_WIDTH}")
    count = floats.size
    _check("floats", floats, (count,))
    _check("packed", packed, (-(-count // 2),), np.uint8)
    _check("absmax", absmax, (-(-count // block_size),), np.float32)
    return count // block_size


def quantize_4bit(
    kind: str,
    source: NDArray[Any],
    packed: NDArray[np.uint8],
    absmax: NDArray[np.float32],
    block_size: int,
) -> int:
    """Quantize a flattened weight and pack its codes.

    Parameters
    ----------
    kind : str
        ``nf4`` or ``fp4``.
    source : ndarray
        float32, float16, or uint16 (bf16 bits), ``(n,)``, C-contiguous; may be read-only.
    packed : ndarray
        uint8, ``(ceil(n / 2),)``; overwritten. A spare half of the last byte gets the code of zero.
    absmax : ndarray
        float32, ``(ceil(n / block_size),)``, weight units; overwritten with the largest magnitude of each block.
    block_size : int
        Elements of a block, a multiple of 32; the last block may be short.

    Returns
    -------
    int
        Values that are NaN or infinite. If there are any, what was written has no meaning.

    Raises
    ------
    ShapeError, ConfigError, UnknownFormatError
        If the arguments do not fit together.

    Notes
    -----
    Runs on the calling thread without the GIL. Every block is multiplied by the float32 inverse of its maximum.
    """
    blocks = _check_blocks(kind, source, packed, absmax, block_size)
    floats = cpu.float_kind(source.dtype, "dtype of the weights")
    kernel, done = _quantize_kernel(list(_TABLES).index(kind), floats), blocks * block_size
    bad = kernel(cpu.address(source), cpu.address(packed), cpu.address(absmax), blocks, block_size // _WIDTH)
    if done < source.size:
        last = np.zeros(block_size, source.dtype)
        last[: source.size - done] = source[done:]
        codes = np.empty(block_size // 2, np.uint8)
        bad |= kernel(
            cpu.address(last), cpu.address(codes), cpu.address(absmax[blocks:]), 1, block_size // _WIDTH
        )
        packed[done // 2 :] = codes[: packed.size - done // 2]
    return cpu.count_nonfinite(source) if bad else 0


def dequantize_4bit(
    kind: str,
    packed: NDArray[np.uint8],
    absmax: NDArray[np.float32],
    out: NDArray[Any],
    block_size: int,
) -> None:
    """Decode a flattened weight.

    Parameters
    ----------
    kind : str
        ``nf4`` or ``fp4``.
    packed : ndarray
        uint8, ``(ceil(n / 2),)``, C-contiguous; may be read-only.
    absmax : ndarray
        float32, ``(ceil(n / block_size),)``.
    out : ndarray
        float32, float16, or uint16 (bf16 bits), ``(n,)``; overwritten. Halves are one rounding of the float32 value.
    block_size : int
        Elements of a block, a multiple of 32.

    Raises
    ------
    ShapeError, ConfigError, UnknownFormatError
        If the arguments do not fit together.
    """
    blocks = _check_blocks(kind, out, packed, absmax, block_size)
    kernel = _dequantize_kernel(cpu.float_kind(out.dtype, "dtype of the output"))
    table, done = cpu.address(_pairs(kind)), blocks * block_size
    chunks = block_size // _WIDTH
    kernel(table, cpu.address(packed), cpu.address(absmax), cpu.address(out), blocks, chunks)
    if done < out.size:
        codes = np.zeros(block_size // 2, np.uint8)
        codes[: packed.size - done // 2] = packed[done // 2 :]
        last = np.empty(block_size, out.dtype)
        kernel(table, cpu.address(codes), cpu.address(absmax[blocks:]), cpu.address(last), 1, chunks)
        out[done:] = last[: out.size - done]


def pack_codes(codes: NDArray[np.uint8], packed: NDArray[np.uint8], spare: int) -> None:
    """Put two codes into each byte.

    Parameters
    ----------
    codes : ndarray
        uint8, ``(n,)``, 0 to 15; not checked.
    packed : ndarray
        uint8, ``(ceil(n / 2),)``; overwritten.
    spare : int
        Code for the low half of the last byte where n is odd.
    """
    count = codes.size
    _check("codes", codes, (count,), np.uint8)
    _check("packed", packed, (-(-count // 2),), np.uint8)
    chunks = count // (2 * _WIDTH)
    _repack_kernel(1)(cpu.address(codes), cpu.address(packed), chunks)
    rest = codes[chunks * 2 * _WIDTH :]
    if rest.size % 2:
        rest = np.append(rest, np.uint8(spare))
    packed[chunks * _WIDTH :] = rest[::2] << 4 | rest[1::2]


def unpack_codes(packed: NDArray[np.uint8], codes: NDArray[np.uint8]) -> None:
    """Give every code its own byte.

    Parameters
    ----------
    packed : ndarray
        uint8, ``(ceil(n / 2),)``.
    codes : ndarray
        uint8, ``(n,)``; overwritten.
    """
    count = codes.size
    _check("codes", codes, (count,), np.uint8)
    _check("packed", packed, (-(-count // 2),), np.uint8)
    chunks = count // (2 * _WIDTH)
    _repack_kernel(0)(cpu.address(packed), cpu.address(codes), chunks)
    rest, left = packed[chunks * _WIDTH :], codes[chunks * 2 * _WIDTH :]
    left[::2], left[1::2] = rest >> 4, rest[: left.size // 2] & 15


def quantize_int8(source: NDArray[Any], codes: NDArray[np.int8], absmax: NDArray[np.float32]) -> Outcome:
    """Quantize rows to 8 bits.

    Parameters
    ----------
    source : ndarray
        float32, float16, or uint16 (bf16 bits), ``(N, K)``, C-contiguous; rounded to float16 first.
    codes : ndarray
        int8, ``(N, K)``; overwritten with -127 to 127.
    absmax : ndarray
        float32, ``(N,)``, weight units; overwritten with the largest magnitude of each row.

    Returns
    -------
    Outcome
        Non-finite inputs, and those that float16 cannot hold.

    Raises
    ------
    ShapeError, ConfigError
        If the arguments do not fit together.
    """
    _check("source", source, (*source.shape[:1], *source.shape[1:2]))
    _check("codes", codes, source.shape, np.int8)
    _check("absmax", absmax, source.shape[:1], np.float32)
    kernel = _quantize_rows_kernel(cpu.float_kind(source.dtype, "dtype of the weights"))
    rows, columns = source.shape
    if not kernel(cpu.address(source), cpu.address(codes), cpu.address(absmax), rows, columns):
        return Outcome(0, 0)
    nonfinite = cpu.count_nonfinite(source)
    if nonfinite:
        return Outcome(nonfinite, 0)
    return Outcome(0, cpu.cast(source, np.empty(source.shape, np.float16)))


def dequantize_int8(codes: NDArray[np.int8], scale: NDArray[np.float32], out: NDArray[Any]) -> None:
    """Decode rows of 8 bits: ``code * scale``.

    Parameters
    ----------
    codes : ndarray
        int8, ``(N, K)``, C-contiguous; may be read-only.
    scale : ndarray
        float32, ``(N,)``, weight units a step.
    out : ndarray
        float32, float16, or uint16 (bf16 bits), ``(N, K)``; overwritten.

    Raises
    ------
    ShapeError, ConfigError
        If the arguments do not fit together.
    """
    _check("codes", codes, (*codes.shape[:1], *codes.shape[1:2]), np.int8)
    _check("scale", scale, codes.shape[:1], np.float32)
    _check("out", out, codes.shape)
    kernel = _dequantize_rows_kernel(cpu.float_kind(out.dtype, "dtype of the output"))
    kernel(cpu.address(codes), cpu.address(scale), cpu.address(out), *codes.shape)
