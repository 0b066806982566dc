"""Vectors inside compiled kernels, written out: what LLVM does not find in loops over the bytes of a block.

Functions for kernels under :func:`qformats.kernels.cpu.jit`. A vector has 16 lanes whatever the processor has, since
LLVM splits and joins them: *bytes* are uint8, *floats* are float32. Arrays have one dimension; places count elements,
and nothing is checked. Sums of products are fused where the processor can do that, so their last bits differ from host
to host: kernels that quantize have no use for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

__all__ = [
    "LANES",
    "both",
    "bytes_at",
    "bytes_of",
    "chosen",
    "either",
    "floats",
    "floats_at",
    "half_at",
    "high_halves",
    "left",
    "less",
    "low_halves",
    "madd",
    "plus",
    "put_floats",
    "right",
    "signed",
    "splat",
    "times",
    "total",
    "word_at",
    "zeros",
]

LANES = 16
"""Elements of a vector."""

_I8, _I16, _I32, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()
_V8, _V32, _VF = ir.VectorType(_I8, LANES), ir.VectorType(_I32, LANES), ir.VectorType(_F32, LANES)


class _Lanes(types.Type):
    """A vector, to numba."""

    def __init__(self, name: str, of: ir.Type) -> None:
        self.of = of
        super().__init__(name=name)


@register_model(_Lanes)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: _Lanes) -> None:
        super().__init__(manager, kind, kind.of)  # type: ignore[no-untyped-call]


_BYTES, _FLOATS = _Lanes("bytes of vectors", _V8), _Lanes("floats of vectors", _VF)


def _function(typing: Callable[..., Any]) -> Any:
    """Make a function of kernels of one that numba asks for types and code."""
    return intrinsic(typing)


def _as(signature: Any, build: Callable[..., Any]) -> Any:
    """What an intrinsic returns: types, and what makes its instructions from a builder and values."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        arrays = [
            context.make_array(kind)(context, builder, value) if isinstance(kind, types.Array) else value
            for kind, value in zip(signature.args, values, strict=True)
        ]
        return build(builder, *arrays)

    return signature, generate


def _load(builder: Any, array: Any, place: Any, of: Any) -> Any:
    """Read from an array whatever its alignment."""
    found = builder.load(builder.bitcast(builder.gep(array.data, [place]), of.as_pointer()))
    found.align = 1
    return found


def _spread(builder: Any, value: Any, of: Any) -> Any:
    """The same value in all lanes."""
    nothing = ir.Constant(of, ir.Undefined)
    first = builder.insert_element(nothing, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(_V32, [0] * LANES))


def _every(of: Any, value: float) -> Any:
    return ir.Constant(of, [value] * LANES)


@_function
def bytes_at(typingctx: Any, array: Any, place: Any) -> Any:
    """16 bytes of an array of uint8."""
    return _as(_BYTES(array, types.intp), lambda builder, array, place: _load(builder, array, place, _V8))


@_function
def bytes_of(typingctx: Any, first: Any, second: Any, third: Any, fourth: Any) -> Any:
    """Bytes of four uint32, from the lowest one of the first on."""

    def build(builder: Any, *words: Any) -> Any:
        found = ir.Constant(ir.VectorType(_I32, 4), ir.Undefined)
        for place, word in enumerate(words):
            found = builder.insert_element(found, word, ir.Constant(_I32, place))
        return builder.bitcast(found, _V8)

    return _as(_BYTES(*[types.uint32] * 4), build)


@_function
def floats_at(typingctx: Any, array: Any, place: Any) -> Any:
    """16 floats of an array of float32."""
    return _as(_FLOATS(array, types.intp), lambda builder, array, place: _load(builder, array, place, _VF))


@_function
def half_at(typingctx: Any, array: Any, place: Any) -> Any:
    """The little-endian uint16 that begins at a byte of an array of uint8."""
    return _as(
        types.uint16(array, types.intp), lambda builder, array, place: _load(builder, array, place, _I16)
    )


@_function
def word_at(typingctx: Any, array: Any, place: Any) -> Any:
    """The little-endian uint32 that begins at a byte of an array of uint8."""
    return _as(
        types.uint32(array, types.intp), lambda builder, array, place: _load(builder, array, place, _I32)
    )


def _halves(builder: Any, array: Any, place: Any, drop: int) -> Any:
    """Floats of the float16 in the lower halves of words, after they moved by `drop` bits."""
    words = builder.lshr(_load(builder, array, place, _V32), _every(_V32, drop))
    magnitude = builder.shl(builder.and_(words, _every(_V32, 0x7FFF)), _every(_V32, 13))
    # The exponent counts from 127 and not from 15: a product with 2**112 is right for subnormal halves, too.
    value = builder.bitcast(builder.fmul(builder.bitcast(magnitude, _VF), _every(_VF, 2.0**112)), _V32)
    special = builder.icmp_unsigned(">=", magnitude, _every(_V32, 0x7C00 << 13))
    value = builder.select(special, builder.or_(magnitude, _every(_V32, 0x7F800000)), value)
    sign = builder.shl(builder.and_(words, _every(_V32, 0x8000)), _every(_V32, 16))
    return builder.bitcast(builder.or_(value, sign), _VF)


@_function
def low_halves(typingctx: Any, array: Any, place: Any) -> Any:
    """Floats of the float16 in the lower halves of 16 words of an array of uint32."""
    return _as(_FLOATS(array, types.intp), lambda builder, array, place: _halves(builder, array, place, 0))


@_function
def high_halves(typingctx: Any, array: Any, place: Any) -> Any:
    """As :func:`low_halves`, of the upper halves."""
    return _as(_FLOATS(array, types.intp), lambda builder, array, place: _halves(builder, array, place, 16))


@_function
def put_floats(typingctx: Any, array: Any, place: Any, value: Any) -> Any:
    """Write 16 floats into an array of float32."""

    def build(builder: Any, array: Any, place: Any, value: Any) -> Any:
        target = builder.bitcast(builder.gep(array.data, [place]), _VF.as_pointer())
        builder.store(value, target, align=4)
        return ir.Constant(ir.IntType(8).as_pointer(), None)

    return _as(types.none(array, types.intp, _FLOATS), build)


def _with_byte(instruction: str) -> Any:
    """Bytes and the same uint8 in all lanes."""

    def build(builder: Any, value: Any, byte: Any) -> Any:
        return getattr(builder, instruction)(value, _spread(builder, byte, _V8))

    return _as(_BYTES(_BYTES, types.uint8), build)


@_function
def both(typingctx: Any, value: Any, mask: Any) -> Any:
    """Bitwise and of bytes with the same uint8 in all lanes."""
    return _with_byte("and_")


@_function
def either(typingctx: Any, one: Any, other: Any) -> Any:
    """Bitwise or of bytes."""
    return _as(_BYTES(_BYTES, _BYTES), lambda builder, one, other: builder.or_(one, other))


@_function
def left(typingctx: Any, value: Any, count: Any) -> Any:
    """Bytes, shifted towards their high bits."""
    return _with_byte("shl")


@_function
def right(typingctx: Any, value: Any, count: Any) -> Any:
    """Bytes, shifted towards their low bits."""
    return _with_byte("lshr")


@_function
def less(typingctx: Any, value: Any, amount: Any) -> Any:
    """Bytes minus the same uint8 in all lanes, for :func:`signed`."""
    return _with_byte("sub")


@_function
def chosen(typingctx: Any, bits: Any, value: Any) -> Any:
    """Bytes that are `value` (uint8) in the lanes whose bit of a uint16 is set, and 0 elsewhere."""
    return _as(
        _BYTES(types.uint16, types.uint8),
        lambda builder, bits, value: builder.select(
            builder.bitcast(bits, ir.VectorType(ir.IntType(1), LANES)),
            _spread(builder, value, _V8),
            _every(_V8, 0),
        ),
    )


@_function
def floats(typingctx: Any, value: Any) -> Any:
    """Floats of bytes."""
    return _as(_FLOATS(_BYTES), lambda builder, value: builder.uitofp(value, _VF))


@_function
def signed(typingctx: Any, value: Any) -> Any:
    """Floats of bytes that are int8."""
    return _as(_FLOATS(_BYTES), lambda builder, value: builder.sitofp(value, _VF))


@_function
def plus(typingctx: Any, one: Any, other: Any) -> Any:
    """Sums of floats."""
    return _as(_FLOATS(_FLOATS, _FLOATS), lambda builder, one, other: builder.fadd(one, other))


@_function
def splat(typingctx: Any, value: Any) -> Any:
    """The same float32 in all lanes."""
    return _as(_FLOATS(types.float32), lambda builder, value: _spread(builder, value, _VF))


@_function
def zeros(typingctx: Any) -> Any:
    """Floats that are 0."""
    return _as(_FLOATS(), lambda builder: _every(_VF, 0.0))


@_function
def times(typingctx: Any, one: Any, other: Any) -> Any:
    """Products of floats."""
    return _as(_FLOATS(_FLOATS, _FLOATS), lambda builder, one, other: builder.fmul(one, other))


@_function
def madd(typingctx: Any, one: Any, other: Any, sums: Any) -> Any:
    """``one * other + sums`` of floats, with one rounding or with two, as the processor does it faster."""

    def build(builder: Any, *values: Any) -> Any:
        kind = ir.FunctionType(_VF, [_VF] * 3)
        name = f"llvm.fmuladd.v{LANES}f32"
        insert: Callable[..., Any] = cgutils.get_or_insert_function
        return builder.call(insert(builder.module, kind, name), values)

    return _as(_FLOATS(_FLOATS, _FLOATS, _FLOATS), build)


@_function
def total(typingctx: Any, value: Any) -> Any:
    """Sum of the lanes, by halves."""

    def build(builder: Any, value: Any) -> Any:
        count = LANES
        while count > 1:
            count //= 2
            places = ir.VectorType(_I32, count)
            parts = [ir.Constant(places, list(range(start, start + count))) for start in (0, count)]
            value = builder.fadd(*(builder.shuffle_vector(value, value, part) for part in parts))
        return builder.extract_element(value, ir.Constant(_I32, 0))

    return _as(types.float32(_FLOATS), build)
