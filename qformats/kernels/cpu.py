"""Kernels on the processor: how they are compiled, and the casts between checkpoints' three float formats.

A kernel gets the addresses of its arrays as integers. So one compilation serves writable and read-only
(memory-mapped) arrays, and dispatch costs about a microsecond. Every kernel runs on the calling thread and
releases the GIL: callers split rows over a thread pool.

Float formats by numpy dtype: float32; float16; uint16, which means bf16 bits (numpy has no bf16).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from qformats.errors import ConfigError, ShapeError
from qformats.kernels import lanes
from qformats.kernels.lanes import F32, I64, Lanes

__all__ = [
    "FLOATS",
    "Outcome",
    "address",
    "bf16_to_f32",
    "cast",
    "count_nonfinite",
    "f16_to_f32",
    "f32_to_bf16",
    "f32_to_f16",
    "first_nonfinite",
    "float_kind",
    "for_vectors",
    "jit",
    "load_floats",
    "source_stamp",
    "store_floats",
    "variable",
]

FLOATS = ("float32", "float16", "uint16")
"""numpy dtypes of float data; uint16 holds bf16 bits. A kernel is told the position in this tuple."""

_BYTES = (4, 2, 2)
# Magnitude of infinity in the bits of each format: this or more is not finite.
_INFINITY = (0x7F800000, 0x7C00, 0x7F80)
_MAGNITUDE = (0x7FFFFFFF, 0x7FFF, 0x7FFF)
# Vectors as long as a block of most formats: 2 registers of AVX-512, 4 of AVX2.
_WIDTH = 32


class Outcome(NamedTuple):
    """What the caller of a quantizing kernel must know about the values it read; both 0 when all is well.

    Attributes
    ----------
    nonfinite : int
        NaN and infinite values. If there are any, what was written has no meaning and `overflow` is 0.
    overflow : int
        Blocks (rows, groups) whose parameters are too large for their stored dtype and became infinite; or values, in
        a format that casts them before it quantizes.
    """

    nonfinite: int
    overflow: int


def jit(*, fastmath: frozenset[str] = frozenset()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function with numba: without the GIL, cached on disk where a cache can be written.

    Parameters
    ----------
    fastmath : frozenset of str
        LLVM fast-math flags. Only for kernels whose results cannot depend on them.

    Returns
    -------
    callable
        Decorator; the function compiles at its first call, once per argument types.

    Raises
    ------
    ValueError
        For flags that fuse multiplications with additions (``contract``, ``fast``): bytes would change with
        the host.
    """
    if fastmath & {"contract", "fast"}:
        raise ValueError("a kernel must not be compiled with the flags 'contract' or 'fast'")

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        options: dict[str, Any] = {"nogil": True, "fastmath": set(fastmath) or False}
        try:
            return njit(cache=True, **options)(function)  # type: ignore[no-any-return]
        except RuntimeError as error:
            # numba found no place for its cache: the package is read-only and there is no home folder.
            if "cannot cache" not in str(error):
                raise
            return njit(**options)(function)  # type: ignore[no-any-return]

    return decorate


def source_stamp(*modules: str) -> int:
    """Hash source files into 60 bits, for a kernel to carry as a constant.

    numba's cache on disk notices changes only in the file of the kernel itself; a constant of the enclosing
    function is part of its key, so a kernel that closes over this number is compiled again when one of
    `modules` changed.

    Parameters
    ----------
    *modules : str
        Paths of source files (``__file__``); this module and `lanes` are always included.
    """
    digest = hashlib.sha256()
    for path in (__file__, lanes.__file__, *modules):
        digest.update(Path(path).read_bytes())
    return int.from_bytes(digest.digest()[:8], "little") >> 4


def float_kind(dtype: np.dtype[Any], what: str = "dtype") -> int:
    """Give the position of a dtype in `FLOATS`.

    Raises
    ------
    ConfigError
        If it is none of them.
    """
    if dtype.name not in FLOATS or not dtype.isnative:
        raise ConfigError(
            what, str(dtype), "float32, float16, or uint16 holding bf16 bits, in native byte order"
        )
    return FLOATS.index(dtype.name)


def address(array: NDArray[Any]) -> int:
    """Give the address of a C-contiguous array's first byte."""
    return int(array.__array_interface__["data"][0])


def for_vectors(builder: Any, count: Any, body: Callable[[Any, int], None], single: int = 1) -> None:
    """Emit ``body(index, lanes)`` over `count` elements: vectors of 32 as far as they go, then `single` at a time.

    Parameters
    ----------
    builder, count
        Where the instructions go, and an int64.
    body : callable
        Gets the first element and the number of lanes; 0 lanes stand for a scalar.
    single : int
        Elements that belong together, such as two codes of a byte; `count` is a multiple of it.
    """
    vectors = builder.udiv(count, I64(_WIDTH))
    with cgutils.for_range(builder, vectors) as loop:
        body(builder.mul(loop.index, I64(_WIDTH)), _WIDTH)
    rest = builder.udiv(builder.urem(count, I64(_WIDTH)), I64(single))
    with cgutils.for_range(builder, rest) as loop:
        first = builder.add(builder.mul(vectors, I64(_WIDTH)), builder.mul(loop.index, I64(single)))
        body(first, single if single > 1 else 0)


def variable(builder: Any, initial: Any) -> Any:
    """Emit a local variable that a loop may change; LLVM keeps it in registers."""
    allocate: Any = cgutils.alloca_once_value
    return allocate(builder, initial)


def load_floats(builder: Any, kind: int, source: Any, count: int, offset: int = 0) -> Lanes:
    """Emit a read of `count` values (0: a scalar) of format ``FLOATS[kind]``, widened to float32."""
    if kind == 0:
        return lanes.load(builder, source, offset, F32, count)
    bits = lanes.load(builder, source, offset, ir.IntType(16), count)
    return lanes.widen_f16(bits) if kind == 1 else lanes.widen_bf16(bits)


def store_floats(value: Lanes, kind: int, target: Any, offset: int = 0) -> Lanes:
    """Emit a write of float32 lanes in format ``FLOATS[kind]``, rounded once to even; give its bits."""
    if kind == 0:
        lanes.store(value, target, offset)
        return value.bits()
    bits = lanes.narrow_f16(value) if kind == 1 else lanes.narrow_bf16(value)
    lanes.store(bits, target, offset)
    return bits


def _scalar(function: Callable[[Lanes], Lanes], result: Any, argument: Any) -> Any:
    def typer(typingctx: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return function(Lanes(builder, args[0])).value

        return result(argument), codegen

    return intrinsic(typer)


# For use inside other jitted functions; LLVM vectorizes them as it does any arithmetic.
f16_to_f32 = _scalar(lanes.widen_f16, types.float32, types.uint16)
bf16_to_f32 = _scalar(lanes.widen_bf16, types.float32, types.uint16)
f32_to_f16 = _scalar(lanes.narrow_f16, types.uint16, types.float32)
f32_to_bf16 = _scalar(lanes.narrow_bf16, types.uint16, types.float32)


def _emit_stream(builder: Any, count: Any, body: Callable[[Any, int], Lanes]) -> Any:
    """Emit ``sum over i of body(i, lanes)``: vectors as far as they go, then single elements."""
    total = variable(builder, I64(0))
    vectors = builder.udiv(count, I64(_WIDTH))
    with cgutils.for_range(builder, vectors) as loop:
        hits = body(builder.mul(loop.index, I64(_WIDTH)), _WIDTH).mask()
        population = builder.ctpop(hits.value)
        builder.store(builder.add(builder.load(total), builder.zext(population, I64)), total)
    with cgutils.for_range(builder, builder.urem(count, I64(_WIDTH))) as loop:
        hit = body(builder.add(builder.mul(vectors, I64(_WIDTH)), loop.index), 0)
        builder.store(builder.add(builder.load(total), builder.zext(hit.value, I64)), total)
    return builder.load(total)


def _stream_typer(
    typingctx: Any, source_kind: Any, target_kind: Any, stamp: Any, source: Any, target: Any, count: Any
) -> Any:
    first, second = source_kind.literal_value, target_kind.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, _, _, origin, destination, length = args

        def body(index: Any, width: int) -> Lanes:
            at = builder.add(origin, builder.mul(index, I64(_BYTES[first])))
            if second < 0:  # Count only: no need to widen.
                bits = lanes.load(builder, at, 0, ir.IntType(8 * _BYTES[first]), width)
                return (bits & _MAGNITUDE[first]).ge(_INFINITY[first])
            to = builder.add(destination, builder.mul(index, I64(_BYTES[second])))
            bits = store_floats(load_floats(builder, first, at, width), second, to)
            return (bits & _MAGNITUDE[second]).ge(_INFINITY[second])

        return _emit_stream(builder, length, body)

    return types.int64(source_kind, target_kind, stamp, types.int64, types.int64, types.int64), codegen


_stream: Any = intrinsic(prefer_literal=True)(_stream_typer)


@functools.cache
def _stream_kernel(source_kind: int, target_kind: int) -> Callable[[int, int, int], int]:
    stamp = source_stamp()

    @jit()
    def stream(source: int, target: int, count: int) -> Any:
        return _stream(source_kind, target_kind, stamp, source, target, count)

    return stream


def _check_contiguous(array: NDArray[Any], what: str) -> None:
    if not array.flags.c_contiguous:
        raise ShapeError(what, f"{array.shape} with strides {array.strides}", "a C-contiguous array")


def cast(source: NDArray[Any], target: NDArray[Any]) -> int:
    """Convert floats to another float format, rounding to nearest, ties to even.

    Parameters
    ----------
    source : ndarray
        float32, float16, or uint16 (bf16 bits); any shape, C-contiguous; may be read-only.
    target : ndarray
        One of the same dtypes, same shape, C-contiguous; overwritten. May not overlap
        `source`, except entirely and with elements of the same size.

    Returns
    -------
    int
        How many values of `target` are not finite: those of `source`, and those too large for the target
        format.

    Raises
    ------
    ShapeError
        If the shapes differ or an array is not C-contiguous.
    ConfigError
        If a dtype is none of the three.
    """
    kinds = float_kind(source.dtype, "dtype of the source"), float_kind(target.dtype, "dtype of the target")
    if source.shape != target.shape:
        raise ShapeError("target of a cast", target.shape, f"the shape {source.shape} of its source")
    _check_contiguous(source, "source of a cast")
    _check_contiguous(target, "target of a cast")
    return _stream_kernel(*kinds)(address(source), address(target), source.size)


def count_nonfinite(source: NDArray[Any]) -> int:
    """Count NaN and infinities in float32, float16 or uint16 (bf16 bits) values; C-contiguous, any shape."""
    kind = float_kind(source.dtype)
    _check_contiguous(source, "array to check")
    return _stream_kernel(kind, -1)(address(source), 0, source.size)


def first_nonfinite(source: NDArray[Any]) -> int | None:
    """Find the flat index of the first NaN or infinity, or None; arguments as for `count_nonfinite`."""
    kind = float_kind(source.dtype)
    _check_contiguous(source, "array to check")
    bits: NDArray[Any] = source.reshape(-1).view(np.uint32 if kind == 0 else np.uint16)
    chunk = 1 << 18
    for start in range(0, bits.size, chunk):
        hits = np.flatnonzero((bits[start : start + chunk] & _MAGNITUDE[kind]) >= _INFINITY[kind])
        if hits.size:
            return start + int(hits[0])
    return None
