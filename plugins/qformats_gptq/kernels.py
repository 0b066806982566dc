"""GPTQ on the processor: floats to codes, codes to words and back, and words to floats.

``qweight`` is a bit stream along each column of an int32 matrix ``(K * bits / 32, N)``: code ``k`` of output ``n``
lies in bits ``bits * k`` and up of column ``n``. So 32 codes are `bits` whole words for every width, and they move
together: 8 codes a 64-bit lane are pushed together in three steps of halving, and the bytes that are left are the
words. Source: AutoGPTQ:auto_gptq/nn_modules/qlinear/qlinear_cuda.py.

Weights are rounded by the rule of :class:`qformats_gptq.grid.GroupGrid`, whose codes and parameters these kernels give.

This module imports numba. Import it inside functions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
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

__all__ = ["BITS", "Outcome", "dequantize", "pack", "quantize", "unpack"]

BITS = (2, 3, 4, 8)
"""Code widths."""

_STEP = 32
"""Codes that are whole words in every width."""
_TILE = 16
"""Columns that are worked on together: as many words as a cache line holds."""
_I8, _I32 = ir.IntType(8), ir.IntType(32)
_FLOAT_BYTES = (4, 2, 2)
_QUADS = ir.VectorType(I64, _STEP // 8)
_BYTES = ir.VectorType(_I8, _STEP)


def _every(width: int, bits: int) -> int:
    """64 bits of which the lowest `bits` of every `width` are set."""
    return sum(((1 << bits) - 1) << at for at in range(0, 64, width))


def _choose(value: Lanes, order: Sequence[int]) -> Lanes:
    """Lanes in another order; those from the number of lanes on are zero."""
    wanted = ir.Constant(ir.VectorType(_I32, len(order)), list(order))
    zeros = ir.Constant(value.value.type, [0] * value.count)
    return Lanes(value.builder, value.builder.shuffle_vector(value.value, zeros, wanted))


def _join(codes: Lanes, bits: int) -> Lanes:
    """Words of 32 codes: int8 lanes to `bits` int32 lanes."""
    packed = codes.as_type(_QUADS)
    for width in (8, 16, 32):
        kept = width // 8 * bits
        if kept < width:
            low = _every(2 * width, kept)
            packed = (packed & low) | ((packed >> (width - kept)) & (low << kept))
    wanted = [8 * quad + byte for quad in range(_QUADS.count) for byte in range(bits)]
    return _choose(packed.as_type(_BYTES), wanted).as_type(ir.VectorType(_I32, bits))


def _split(words: Lanes, bits: int) -> Lanes:
    """Inverse of :func:`_join`."""
    total = 4 * bits
    wanted = [
        bits * quad + byte if byte < bits else total for quad in range(_QUADS.count) for byte in range(8)
    ]
    codes = _choose(words.as_type(ir.VectorType(_I8, total)), wanted).as_type(_QUADS)
    for width in (32, 16, 8):
        kept = width // 8 * bits
        if kept < width:
            low = _every(2 * width, kept)
            codes = (codes & low) | ((codes << (width - kept)) & (low << width))
    return codes.as_type(_BYTES)


def _for_tiles(builder: Any, rows: Any, columns: Any, body: Callable[[Any, Any], None]) -> None:
    """Emit ``body(row, column)`` for every 32 columns of every row.

    A tile of rows goes through two steps at a time: what it reads and writes stays in the first-level cache.
    """
    tiles, pairs = builder.udiv(rows, I64(_TILE)), builder.udiv(columns, I64(2 * _STEP))
    rest = builder.udiv(builder.urem(columns, I64(2 * _STEP)), I64(_STEP))

    def tile(first: Any, column: Any, steps: int) -> None:
        with cgutils.for_range(builder, I64(_TILE)) as loop:
            row = builder.add(first, loop.index)
            for step in range(steps):
                body(row, builder.add(column, I64(step * _STEP)))

    with cgutils.for_range(builder, tiles) as outer:
        first = builder.mul(outer.index, I64(_TILE))
        with cgutils.for_range(builder, pairs) as inner:
            tile(first, builder.mul(inner.index, I64(2 * _STEP)), 2)
        with cgutils.for_range(builder, rest):
            tile(first, builder.mul(pairs, I64(2 * _STEP)), 1)


def _word_places(builder: Any, bits: int, base: Any, rows: Any, row: Any, column: Any) -> list[Any]:
    """Address of each word that holds the codes of 32 columns of a row."""
    line = builder.mul(builder.udiv(column, I64(_STEP)), I64(bits))
    at = builder.add(builder.mul(line, rows), row)
    stride = builder.mul(rows, I64(4))
    places = [builder.add(base, builder.mul(at, I64(4)))]
    while len(places) < bits:
        places.append(builder.add(places[-1], stride))
    return places


def _load_codes(builder: Any, bits: int, base: Any, rows: Any, row: Any, column: Any) -> Lanes:
    places = _word_places(builder, bits, base, rows, row, column)
    return _split(lanes.parameters(*(lanes.load(builder, place, 0, _I32) for place in places)), bits)


def _recode_typer(
    typingctx: Any, bits: Any, packing: Any, stamp: Any, codes: Any, words: Any, rows: Any, columns: Any
) -> Any:
    width, to_words = bits.literal_value, bool(packing.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        *_, codes_at, words_at, count, length = args

        def body(row: Any, column: Any) -> None:
            at = builder.add(codes_at, builder.add(builder.mul(row, length), column))
            if to_words:
                joined = _join(lanes.load(builder, at, 0, _I8, _STEP), width)
                places = _word_places(builder, width, words_at, count, row, column)
                for number, place in enumerate(places):
                    lanes.store(joined.lane(number), place, 0)
            else:
                lanes.store(_load_codes(builder, width, words_at, count, row, column), at, 0)

        _for_tiles(builder, count, length, body)
        return length

    return types.int64(bits, packing, stamp, *(types.int64,) * 4), codegen


def _dequantize_typer(
    typingctx: Any,
    bits: Any,
    stamp: Any,
    words: Any,
    scale: Any,
    zero: Any,
    out: Any,
    rows: Any,
    columns: Any,
    group: Any,
    groups: Any,
) -> Any:
    width = bits.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        *_, words_at, scale_at, zero_at, out_at, count, length, block, blocks = args

        def body(row: Any, column: Any) -> None:
            place = builder.add(builder.mul(row, blocks), builder.udiv(column, block))
            place = builder.mul(place, I64(4))
            codes = _load_codes(builder, width, words_at, count, row, column).resize(32).to_float()
            factor = lanes.load(builder, builder.add(scale_at, place), 0, F32)
            offset = lanes.load(builder, builder.add(zero_at, place), 0, F32)
            at = builder.mul(builder.add(builder.mul(row, length), column), I64(4))
            lanes.store((codes - offset) * factor, builder.add(out_at, at), 0)

        _for_tiles(builder, count, length, body)
        return length

    return types.int64(bits, stamp, *(types.int64,) * 8), codegen


def _emit_group(
    builder: Any, bits: int, symmetric: bool, kinds: tuple[int, int], columns: Any, places: tuple[Any, ...]
) -> tuple[Lanes, Lanes]:
    """Quantize one group of a row; give the largest magnitude's bits and the bits of its scale's magnitude."""
    source, target, scale_at, zero_at = places
    kind, scale_kind = kinds
    top = (1 << bits) - 1

    def values(column: Any, count: int) -> Lanes:
        at = builder.add(source, builder.mul(column, I64(_FLOAT_BYTES[kind])))
        return cpu.load_floats(builder, kind, at, count)

    # Lowest and highest value, 0 among them; vectors and single columns apart.
    ends = {}
    for count in (_STEP, 0):
        zeros = ir.Constant(ir.VectorType(F32, count) if count else F32, [0.0] * count if count else 0.0)
        none = ir.Constant(ir.VectorType(_I32, count) if count else _I32, [0] * count if count else 0)
        ends[count] = [cpu.variable(builder, initial) for initial in (zeros, zeros, none)]

    def measure(column: Any, count: int) -> None:
        value = values(column, count)
        low, high, largest = ends[count]
        for place, seen, choose in (
            (low, value, Lanes.min),
            (high, value, Lanes.max),
            (largest, value.bits() & 0x7FFFFFFF, Lanes.max),
        ):
            builder.store(choose(seen, Lanes(builder, builder.load(place))).value, place)

    cpu.for_vectors(builder, columns, measure)
    low, high, largest = (
        choose(
            Lanes(builder, builder.load(wide)).fold(choose),
            Lanes(builder, builder.load(single)),
        )
        for wide, single, choose in zip(ends[_STEP], ends[0], (Lanes.min, Lanes.max, Lanes.max), strict=True)
    )
    if symmetric:
        high = largest.floats()
        low = high * -1.0
    empty = low.eq(high)
    low, high = empty.where(low.full(-1.0), low), empty.where(high.full(1.0), high)
    cpu.store_floats((high - low) / float(top), scale_kind, scale_at)
    scale = cpu.load_floats(builder, scale_kind, scale_at, 0)
    # Where the scale underflows, every weight is far below 0.5, and codes become the zero point.
    divisor = scale.eq(0.0).where(scale.full(1.0), scale)
    if symmetric:
        zero = Lanes(builder, _I32(1 << (bits - 1)))
    else:
        steps = (low * -1.0) / divisor
        zero = steps.min(steps.full(float(top))).max(steps.full(0.0)).nearest()
        lanes.store(zero.resize(8), zero_at, 0)
    # What is beyond the codes is so far beyond that no zero point brings it back.
    limit = float(2 * top + 2)
    offset, last = zero.to_float(), float(top)

    def encode(column: Any, count: int) -> None:
        steps = values(column, count) / divisor.spread(count)
        steps = steps.min(steps.full(limit)).max(steps.full(-limit))
        level = steps.nearest().to_float() + offset
        level = level.min(level.full(last)).max(level.full(0.0))
        lanes.store(level.toward_zero().resize(8), builder.add(target, column), 0)

    cpu.for_vectors(builder, columns, encode)
    return largest, scale.bits() & 0x7FFFFFFF


def _quantize_typer(
    typingctx: Any,
    bits: Any,
    symmetric: Any,
    source_kind: Any,
    scale_kind: Any,
    stamp: Any,
    source: Any,
    codes: Any,
    scale: Any,
    zero: Any,
    rows: Any,
    columns: Any,
    group: Any,
) -> Any:
    width, middle = bits.literal_value, bool(symmetric.literal_value)
    kinds = (source_kind.literal_value, scale_kind.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        *_, source_at, codes_at, scale_at, zero_at, count, length, block = args
        worst = cpu.variable(builder, _I32(0))
        overflows = cpu.variable(builder, I64(0))
        groups = builder.udiv(builder.add(length, builder.sub(block, I64(1))), block)
        with cgutils.for_range(builder, builder.mul(count, groups)) as loop:
            row, number = builder.udiv(loop.index, groups), builder.urem(loop.index, groups)
            first = builder.mul(number, block)
            rest = builder.sub(length, first)
            size = builder.select(builder.icmp_unsigned("<", rest, block), rest, block)
            start = builder.add(builder.mul(row, length), first)
            places = (
                builder.add(source_at, builder.mul(start, I64(_FLOAT_BYTES[kinds[0]]))),
                builder.add(codes_at, start),
                builder.add(scale_at, builder.mul(loop.index, I64(_FLOAT_BYTES[kinds[1]]))),
                builder.add(zero_at, loop.index),
            )
            largest, magnitude = _emit_group(builder, width, middle, kinds, size, places)
            builder.store(largest.max(Lanes(builder, builder.load(worst))).value, worst)
            overflow = magnitude.ge(lanes.F32_INF).resize(64).value
            builder.store(builder.add(builder.load(overflows), overflow), overflows)
        # One number for both: negative if anything was not finite, else the count of groups that overflowed.
        finite = Lanes(builder, builder.load(worst)).lt(lanes.F32_INF)
        return finite.where(Lanes(builder, builder.load(overflows)), Lanes(builder, I64(-1))).value

    return types.int64(bits, symmetric, source_kind, scale_kind, stamp, *(types.int64,) * 7), codegen


_encode: Any = intrinsic(prefer_literal=True)(_quantize_typer)
_recode: Any = intrinsic(prefer_literal=True)(_recode_typer)
_decode: Any = intrinsic(prefer_literal=True)(_dequantize_typer)


@functools.cache
def _recode_kernel(bits: int, packing: int) -> Callable[[int, int, int, int], int]:
    stamp = cpu.source_stamp()

    @cpu.jit()
    def recode_words(codes: int, words: int, rows: int, columns: int) -> Any:
        return _recode(bits, packing, stamp, codes, words, rows, columns)

    return recode_words


@functools.cache
def _dequantize_kernel(bits: int) -> Callable[..., int]:
    stamp = cpu.source_stamp()

    @cpu.jit()
    def dequantize_words(
        words: int, scale: int, zero: int, out: int, rows: int, columns: int, group: int, groups: int
    ) -> Any:
        return _decode(bits, stamp, words, scale, zero, out, rows, columns, group, groups)

    return dequantize_words


@functools.cache
def _quantize_kernel(bits: int, symmetric: int, source_kind: int, scale_kind: int) -> Callable[..., int]:
    stamp = cpu.source_stamp()

    @cpu.jit()
    def quantize_groups(
        source: int, codes: int, scale: int, zero: int, rows: int, columns: int, group: int
    ) -> Any:
        return _encode(
            bits, symmetric, source_kind, scale_kind, stamp, source, codes, scale, zero, rows, columns, group
        )

    return quantize_groups


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
    _recode_kernel(bits, 1)(cpu.address(codes), cpu.address(words), *codes.shape)


def unpack(bits: int, words: NDArray[np.int32], codes: NDArray[np.uint8]) -> None:
    """Words to codes, the inverse of :func:`pack`; `codes` is overwritten.

    Raises
    ------
    ShapeError, ConfigError
        If the arguments do not fit together.
    """
    _check(bits, words, codes, "codes", "uint8")
    _recode_kernel(bits, 0)(cpu.address(codes), cpu.address(words), *codes.shape)


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
    places = (cpu.address(words), cpu.address(scale), cpu.address(zero), cpu.address(out))
    _dequantize_kernel(bits)(*places, *out.shape, group, groups)


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
    kinds = (
        cpu.float_kind(source.dtype, "dtype of the weights"),
        cpu.float_kind(scale.dtype, "dtype of the scales"),
    )
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
    places = (cpu.address(source), cpu.address(codes), cpu.address(scale))
    kernel = _quantize_kernel(bits, int(zero is None), *kinds)
    overflow = kernel(*places, 0 if zero is None else cpu.address(zero), *source.shape, group)
    if overflow < 0:
        return Outcome(cpu.count_nonfinite(source), 0)
    return Outcome(0, overflow)
