"""Vectors in a numba kernel, written out instead of hoped for.

A loop vectorizer turns a block encoder into vector code with one release and into scalar code with the next.
`Lanes` states the vector operations themselves, as LLVM IR of any width; LLVM maps them to whatever the host
has (AVX-512, AVX2, SSE2, NEON), so the arithmetic of every lane is the same everywhere.

Nothing here sets a fast-math flag: no contraction into FMA, no reassociation, so bytes do not depend on the
host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

__all__ = ["Lanes", "load", "narrow_bf16", "narrow_f16", "parameters", "store", "widen_bf16", "widen_f16"]

F32 = ir.FloatType()
I64 = ir.IntType(64)

F32_INF = 0x7F800000
F16_INF = 0x7C00


class Lanes:
    """One value of a kernel under construction: a scalar, or a vector of equal lanes.

    Arithmetic follows the type of the elements (float32, or integers of any width, wrapping around); a Python
    number, or a scalar `Lanes`, beside a vector stands for it in all lanes; right shifts insert zeros.

    Parameters
    ----------
    builder : llvmlite.ir.IRBuilder
        Where the instructions go.
    value : llvmlite.ir.Value
        The value itself.
    """

    __slots__ = ("builder", "value")

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder = builder
        self.value = value

    # Types.
    @property
    def count(self) -> int:
        """Number of lanes; 0 for a scalar."""
        return int(self.value.type.count) if isinstance(self.value.type, ir.VectorType) else 0

    @property
    def element(self) -> Any:
        """LLVM type of one lane."""
        return self.value.type.element if self.count else self.value.type

    def _typed(self, element: Any) -> Any:
        return ir.VectorType(element, self.count) if self.count else element

    def full(self, number: float) -> Lanes:
        """Give a constant of this value's type."""
        return Lanes(self.builder, _constant(self.value.type, number))

    def spread(self, count: int) -> Lanes:
        """Repeat a scalar over `count` lanes (0: leave it a scalar)."""
        if not count:
            return self
        kind = ir.VectorType(self.element, count)
        one = self.builder.insert_element(ir.Constant(kind, ir.Undefined), self.value, ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), count), [0] * count)
        return Lanes(self.builder, self.builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros))

    def _other(self, other: Lanes | float) -> Any:
        if not isinstance(other, Lanes):
            return _constant(self.value.type, other)
        return other.value if other.count == self.count else other.spread(self.count).value

    def _binary(self, floating: str, integer: str, other: Lanes | float) -> Lanes:
        name = floating if self.element == F32 else integer
        return Lanes(self.builder, getattr(self.builder, name)(self.value, self._other(other)))

    # Arithmetic.
    def __add__(self, other: Lanes | float) -> Lanes:
        return self._binary("fadd", "add", other)

    def __sub__(self, other: Lanes | float) -> Lanes:
        return self._binary("fsub", "sub", other)

    def __mul__(self, other: Lanes | float) -> Lanes:
        return self._binary("fmul", "mul", other)

    def __truediv__(self, other: Lanes | float) -> Lanes:
        return self._binary("fdiv", "sdiv", other)

    def __and__(self, other: Lanes | int) -> Lanes:
        return self._binary("and_", "and_", other)

    def __or__(self, other: Lanes | int) -> Lanes:
        return self._binary("or_", "or_", other)

    def __xor__(self, other: Lanes | int) -> Lanes:
        return self._binary("xor", "xor", other)

    def __lshift__(self, other: int) -> Lanes:
        return self._binary("shl", "shl", other)

    def __rshift__(self, other: int) -> Lanes:
        return self._binary("lshr", "lshr", other)

    # Comparisons give lanes of one bit. Floats: false where either side is NaN.
    def eq(self, other: Lanes | float) -> Lanes:
        """Test for equality; +0 equals -0."""
        return self._compare("==", other)

    def lt(self, other: Lanes | float) -> Lanes:
        """Test for less than; integers count as unsigned."""
        return self._compare("<", other)

    def ge(self, other: Lanes | float) -> Lanes:
        """Test for at least; integers count as unsigned."""
        return self._compare(">=", other)

    def _compare(self, operator: str, other: Lanes | float) -> Lanes:
        compare = self.builder.fcmp_ordered if self.element == F32 else self.builder.icmp_unsigned
        return Lanes(self.builder, compare(operator, self.value, self._other(other)))

    def where(self, yes: Lanes, no: Lanes) -> Lanes:
        """Choose `yes` where this condition holds, else `no`; all three have as many lanes."""
        return Lanes(self.builder, self.builder.select(self.value, yes.value, no.value))

    def min(self, other: Lanes) -> Lanes:
        """Give the smaller one; `other` where a NaN or equal zeros leave it open."""
        return self.lt(other).where(self, other)

    def max(self, other: Lanes) -> Lanes:
        """Give the larger one; `other` where a NaN or equal zeros leave it open."""
        return other.lt(self).where(self, other)

    # Conversions.
    def bits(self) -> Lanes:
        """Read float32 lanes as uint32."""
        return Lanes(self.builder, self.builder.bitcast(self.value, self._typed(ir.IntType(32))))

    def floats(self) -> Lanes:
        """Read uint32 lanes as float32."""
        return Lanes(self.builder, self.builder.bitcast(self.value, self._typed(F32)))

    def toward_zero(self) -> Lanes:
        """Convert float32 to int32, dropping the fraction; undefined beyond int32 and for NaN."""
        return Lanes(self.builder, self.builder.fptosi(self.value, self._typed(ir.IntType(32))))

    def nearest(self) -> Lanes:
        """Round float32 to int32, ties to even; right below 2**22 in magnitude."""
        # In a sum with 1.5 * 2**23 the last place is worth 1: the addition does the rounding.
        return (self + 1.5 * 2.0**23).bits() - 0x4B400000

    def to_float(self) -> Lanes:
        """Convert signed integers to float32."""
        return Lanes(self.builder, self.builder.sitofp(self.value, self._typed(F32)))

    def resize(self, width: int) -> Lanes:
        """Give integer lanes another width: cut off, or filled up with zeros."""
        change = self.builder.trunc if width < self.element.width else self.builder.zext
        return Lanes(self.builder, change(self.value, self._typed(ir.IntType(width))))

    def sign_extend(self, width: int) -> Lanes:
        """Give signed integer lanes a larger width."""
        return Lanes(self.builder, self.builder.sext(self.value, self._typed(ir.IntType(width))))

    def as_type(self, kind: Any) -> Lanes:
        """Read the same bits as another LLVM type of the same size (lane 0 becomes the lowest bits)."""
        return Lanes(self.builder, self.builder.bitcast(self.value, kind))

    def mask(self) -> Lanes:
        """Gather one-bit lanes into one integer, lane 0 in bit 0."""
        return self.as_type(ir.IntType(self.count))

    # Across lanes.
    def part(self, start: int, count: int) -> Lanes:
        """Take `count` neighbouring lanes."""
        wanted = ir.Constant(ir.VectorType(ir.IntType(32), count), list(range(start, start + count)))
        nothing = ir.Constant(self.value.type, ir.Undefined)
        return Lanes(self.builder, self.builder.shuffle_vector(self.value, nothing, wanted))

    def then(self, other: Lanes) -> Lanes:
        """Append the lanes of a vector of the same type."""
        both = ir.Constant(ir.VectorType(ir.IntType(32), 2 * self.count), list(range(2 * self.count)))
        return Lanes(self.builder, self.builder.shuffle_vector(self.value, other.value, both))

    def lane(self, index: int) -> Lanes:
        """Take one lane as a scalar."""
        return Lanes(self.builder, self.builder.extract_element(self.value, ir.IntType(32)(index)))

    def fold(self, operation: Callable[[Lanes, Lanes], Lanes]) -> Lanes:
        """Reduce all lanes (a power of two) to a scalar, halving: lane i with lane i + count/2, and so on."""
        value = self
        while value.count > 1:
            half = value.count // 2
            value = operation(value.part(0, half), value.part(half, half))
        return value.lane(0)


def _constant(kind: Any, number: float) -> Any:
    if isinstance(kind, ir.VectorType):
        return ir.Constant(kind, [_constant(kind.element, number)] * kind.count)
    # Integers may be given unsigned; LLVM reads the two's complement either way.
    return ir.Constant(kind, float(number) if kind == F32 else int(number))


def load(builder: Any, address: Any, offset: int, element: Any, count: int = 0) -> Lanes:
    """Read `count` elements (0: one scalar) from `offset` bytes behind an integer address, aligned or not."""
    kind = ir.VectorType(element, count) if count else element
    pointer = builder.inttoptr(builder.add(address, I64(offset)), kind.as_pointer())
    return Lanes(builder, builder.load(pointer, align=1))


def store(value: Lanes, address: Any, offset: int) -> None:
    """Write a value `offset` bytes behind an integer address, aligned or not."""
    builder = value.builder
    pointer = builder.inttoptr(builder.add(address, I64(offset)), value.value.type.as_pointer())
    builder.store(value.value, pointer, align=1)


def parameters(*values: Lanes) -> Lanes:
    """Put scalars of one type side by side into a vector."""
    kind = ir.VectorType(values[0].element, len(values))
    vector = ir.Constant(kind, ir.Undefined)
    builder = values[0].builder
    for index, value in enumerate(values):
        vector = builder.insert_element(vector, value.value, ir.IntType(32)(index))
    return Lanes(builder, vector)


# The two half formats, without conversion instructions: where F16C is missing, LLVM would call a library
# that a jitted module does not have.
def widen_bf16(bits: Lanes) -> Lanes:
    """Turn bf16 bits (uint16) into the float32 of the same value."""
    return (bits.resize(32) << 16).floats()


def widen_f16(bits: Lanes) -> Lanes:
    """Turn fp16 bits (uint16) into the float32 of the same value; NaN keeps its payload."""
    wide = bits.resize(32)
    magnitude = wide & 0x7FFF
    # The exponent moves by 127 - 15; that of infinity and NaN by twice as much, to stay all ones.
    moved = magnitude << 13
    normal = moved + magnitude.ge(F16_INF).where(moved.full(0x70000000), moved.full(0x38000000))
    subnormal = (magnitude.to_float() * 2.0**-24).bits()
    return (magnitude.lt(0x0400).where(subnormal, normal) | ((wide & 0x8000) << 16)).floats()


def narrow_f16(value: Lanes) -> Lanes:
    """Round float32 to fp16 bits (uint16), to nearest, ties to even; NaN stays a quiet NaN."""
    bits = value.bits()
    magnitude = bits & 0x7FFFFFFF
    # Adding just below half of the dropped part, plus the kept last bit, rounds ties to even; a carry moves
    # the exponent.
    normal = (magnitude + ((magnitude >> 13) & 1) + (0x0FFF - 0x38000000)) >> 13
    # The last place of 0.5 is worth 2**-24, the spacing of fp16 subnormals: the addition does the rounding.
    subnormal = (magnitude.floats() + 0.5).bits() - 0x3F000000
    finite = magnitude.lt(0x38800000).where(subnormal, normal)
    nan = ((magnitude >> 13) & 0x03FF) | 0x7E00
    large = magnitude.lt(F32_INF + 1).where(magnitude.full(F16_INF), nan)
    result = magnitude.lt(0x477FF000).where(finite, large) | ((bits >> 16) & 0x8000)
    return result.resize(16)


def narrow_bf16(value: Lanes) -> Lanes:
    """Round float32 to bf16 bits (uint16), to nearest, ties to even; NaN stays a quiet NaN."""
    bits = value.bits()
    rounded = (bits + ((bits >> 16) & 1) + 0x7FFF) >> 16
    nan = (bits >> 16) | 0x0040
    return (bits & 0x7FFFFFFF).lt(F32_INF + 1).where(rounded, nan).resize(16)
