"""Kernels on the processor: how they are compiled, and the casts between checkpoints' three float formats.

Kernels are plain loops that numba compiles and LLVM turns into vector code. Four habits keep LLVM doing so:

- Loops over a block run :func:`block_length` times: LLVM unrolls a loop of 32 rounds completely before it looks for
  vectors, and finds none afterwards; and of a loop of any length it makes vectors that are too long for a block.
- Loops count from 0 through slices: of an index with an offset numba cannot tell that it is not negative, and tests it.
- Every result of integer arithmetic is cast back (``uint32(a + b)``), since numba computes integers in 64 bits; LLVM
  removes the detour.
- Magnitudes are compared as integers: the bits of floats without their sign are ordered as the magnitudes are, NaN
  last. A maximum of integers may be taken in any order, one of floats may not, because of NaN and zeros.

Every kernel runs on the calling thread and releases the GIL: callers split rows over a thread pool.

Float formats by numpy dtype: float32; float16; uint16, which means bf16 bits (numpy has no bf16). Kernels get float16
as uint16 and bf16 as int16 (numba has no float16), see :func:`for_reading`, and use :func:`widen` and :func:`write`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numba import njit, types
from numba.core import event
from numba.extending import overload
from numpy import float32, int16, int32, uint8, uint16, uint32
from numpy.typing import NDArray

from qformats.errors import ConfigError, ShapeError
from qformats.kernels.kernel_cache import secure
from qformats.work import compiling


class _Compilations(event.Listener):
    """Tells of what numba compiles, which it does not do for what its cache holds."""

    def on_start(self, event: Any) -> None:
        compiling.began()

    def on_end(self, event: Any) -> None:
        compiling.ended()


event.register("numba:compile", _Compilations())  # type: ignore[no-untyped-call]

if "colorama" in sys.modules:
    # numba starts it where it is installed. At the end of the process it would reset the colours of a terminal that has
    # none, behind what a command has written.
    sys.modules["colorama"].initialise.atexit_done = True

__all__ = [
    "FLOATS",
    "Outcome",
    "bf16_to_f32",
    "block_length",
    "cast",
    "count_nonfinite",
    "f16_to_f32",
    "f32_to_bf16",
    "f32_to_f16",
    "first_nonfinite",
    "float_kind",
    "for_reading",
    "for_writing",
    "is_infinite",
    "jit",
    "join_nibbles",
    "magnitude_bits",
    "nearest",
    "round_to",
    "source_stamp",
    "split_nibbles",
    "widen",
    "write",
]

FLOATS = ("float32", "float16", "uint16")
"""numpy dtypes of float data; uint16 holds bf16 bits."""

F32_INF = 0x7F800000
"""Magnitude bits of infinity: these or more are not finite."""
_INFINITY = (F32_INF, 0x7C00, 0x7F80)
_MAGNITUDE = (0x7FFFFFFF, 0x7FFF, 0x7FFF)
_TOO_LARGE = (F32_INF, 0x477FF000, 0x7F7F8000)
"""Magnitude bits of the smallest float32 that each format rounds to infinity."""
_RAW = (np.float32, np.uint16, np.int16)


class Outcome(NamedTuple):
    """What the caller of a quantizing kernel must know about the values it read; both 0 when all is well.

    Attributes
    ----------
    nonfinite : int
        NaN and infinite values. If there are any, what was written has no meaning and `overflow` is 0.
    overflow : int
        Blocks (rows, groups) whose parameters are too large for their stored dtype and became infinite; or values, in
        a format that casts them before it quantizes.

    Examples
    --------
    >>> from qformats.kernels.cpu import Outcome
    >>> Outcome(nonfinite=0, overflow=2).overflow
    2
    """

    nonfinite: int
    overflow: int


def source_stamp(*modules: str) -> int:
    """Hash source files into 60 bits.

    numba's cache on disk notices changes only in the file of the kernel itself, not in what the kernel calls.
    :func:`jit` puts this number into the names of a kernel's cache files.

    Parameters
    ----------
    *modules : str
        Paths of source files (``__file__``); this module is always included.

    Examples
    --------
    >>> from qformats.kernels import cpu
    >>> cpu.source_stamp() == cpu.source_stamp(), cpu.source_stamp() < 1 << 60
    (True, True)
    """
    digest = hashlib.sha256()
    for path in (__file__, *modules):
        digest.update(Path(path).read_bytes())
    return int.from_bytes(digest.digest()[:8], "little") >> 4


_STAMP = source_stamp()


def jit(
    *modules: str, fastmath: frozenset[str] = frozenset(), inline: Literal["no", "code", "source"] = "no"
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function with numba: without the GIL, cached on disk where a cache can be written.

    Division by zero gives infinity or NaN.

    Parameters
    ----------
    *modules : str
        Paths of source files (``__file__``) whose functions or constants the kernel uses, beside its own and this one.
    fastmath : frozenset of str
        LLVM fast-math flags. Only for kernels whose results cannot depend on them.
    inline : {"no", "code", "source"}
        For helpers: their optimized code is copied into what calls them, or their source is, which LLVM then optimizes
        as a whole. The latter helps helpers with loops, and compiles slowly.

    Returns
    -------
    callable
        Decorator; the function compiles at its first call, once per argument types.

    Raises
    ------
    ValueError
        For flags that fuse multiplications with additions (``contract``, ``fast``): bytes would change with
        the host.

    Examples
    --------
    >>> import numpy as np
    >>> from qformats.kernels.cpu import jit
    >>> @jit()
    ... def total(values):
    ...     found = np.float32(0)
    ...     for value in values:
    ...         found += value
    ...     return found
    >>> total(np.ones(4, np.float32))
    4.0
    """
    if fastmath & {"contract", "fast"}:
        raise ValueError("a kernel must not be compiled with the flags 'contract' or 'fast'")
    stamp = source_stamp(*modules) if modules else _STAMP

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        # numba names the files of its cache after this.
        function.__qualname__ += f"_{stamp:x}"
        options: dict[str, Any] = {"nogil": True, "fastmath": set(fastmath) or False, "error_model": "numpy"}
        options |= {"forceinline": inline == "code", "inline": "always" if inline == "source" else "never"}
        try:
            return secure(njit(cache=True, **options)(function))  # type: ignore[no-any-return]
        except RuntimeError as error:
            # numba found no place for its cache: the package is read-only and there is no home folder.
            if "cannot cache" not in str(error):
                raise
            return njit(**options)(function)  # type: ignore[no-any-return]

    return decorate


def float_kind(dtype: np.dtype[Any], what: str = "dtype") -> int:
    """Give the position of a dtype in `FLOATS`.

    Raises
    ------
    ConfigError
        If it is none of them.

    Examples
    --------
    >>> import numpy as np
    >>> from qformats.kernels.cpu import FLOATS, float_kind
    >>> FLOATS[float_kind(np.dtype("float16"))]
    'float16'
    """
    if dtype.name not in FLOATS or not dtype.isnative:
        raise ConfigError(
            what, str(dtype), "float32, float16, or uint16 holding bf16 bits, in native byte order"
        )
    return FLOATS.index(dtype.name)


def for_reading(array: NDArray[Any], shape: tuple[int, ...] | int | None = None) -> NDArray[Any]:
    """View of a C-contiguous array as kernels read it.

    Parameters
    ----------
    array : ndarray
        Floats in one of the three formats become float32, uint16 (float16 bits) or int16 (bf16 bits); other dtypes
        stay.
    shape : tuple of int, optional
        Shape of the view.

    Returns
    -------
    ndarray
        Read-only, always: numba compiles one kernel for writable arrays and for memory-mapped ones.

    Examples
    --------
    A kernel that reads any of the three float formats:

    >>> import numpy as np
    >>> from qformats.kernels.cpu import for_reading, jit, widen
    >>> @jit()
    ... def largest(values):
    ...     found = np.float32(0)
    ...     for i in range(values.size):
    ...         found = max(found, abs(widen(values[i])))
    ...     return found
    >>> largest(for_reading(np.array([1, -2.5], np.float16))), largest(for_reading(np.ones(3, np.float32)))
    (2.5, 1.0)
    """
    view = for_writing(array, shape)
    view.flags.writeable = False
    return view


def for_writing(array: NDArray[Any], shape: tuple[int, ...] | int | None = None) -> NDArray[Any]:
    """View of a C-contiguous array as kernels write it, see :func:`for_reading`.

    Examples
    --------
    >>> import numpy as np
    >>> from qformats.kernels.cpu import for_writing, jit, write
    >>> @jit()
    ... def fill(target, value):
    ...     for i in range(target.size):
    ...         write(target, i, value)
    >>> halves = np.zeros(2, np.float16)
    >>> fill(for_writing(halves), np.float32(0.1))
    >>> halves
    array([0.1, 0.1], dtype=float16)
    """
    raw = _RAW[FLOATS.index(array.dtype.name)] if array.dtype.name in FLOATS else array.dtype
    return array.view(raw).reshape(array.shape if shape is None else shape)


# The two half formats by integer arithmetic: numba has no float16.
@jit(inline="code")
def bf16_to_f32(bits: Any) -> Any:
    """Turn bf16 bits into the float32 of the same value."""
    return uint32(uint32(uint16(bits)) << uint32(16)).view(float32)


@jit(inline="code")
def f16_to_f32(bits: Any) -> Any:
    """Turn fp16 bits into the float32 of the same value; NaN keeps its payload."""
    wide = uint32(bits)
    magnitude = uint32(wide & uint32(0x7FFF))
    # The exponent moves by 127 - 15; that of infinity and NaN by twice as much, to stay all ones.
    shift = uint32(0x70000000) if magnitude >= uint32(0x7C00) else uint32(0x38000000)
    normal = uint32(uint32(magnitude << uint32(13)) + shift)
    subnormal = float32(float32(int32(magnitude)) * float32(2.0**-24)).view(uint32)
    found = subnormal if magnitude < uint32(0x0400) else normal
    return uint32(found | uint32(uint32(wide & uint32(0x8000)) << uint32(16))).view(float32)


@jit(inline="code")
def f32_to_f16(value: Any) -> Any:
    """Round float32 to fp16 bits (uint16), to nearest, ties to even; NaN stays a quiet NaN."""
    bits = float32(value).view(uint32)
    magnitude = uint32(bits & uint32(0x7FFFFFFF))
    # Adding just below half of the dropped part, plus the kept last bit, rounds ties to even; a carry moves
    # the exponent.
    odd = uint32(uint32(magnitude >> uint32(13)) & uint32(1))
    normal = uint32(uint32(magnitude + uint32(odd + uint32(0xC8000FFF))) >> uint32(13))
    # The last place of 0.5 is worth 2**-24, the spacing of fp16 subnormals: the addition does the rounding.
    half = float32(uint32(magnitude).view(float32) + float32(0.5))
    subnormal = uint32(float32(half).view(uint32) - uint32(0x3F000000))
    finite = subnormal if magnitude < uint32(0x38800000) else normal
    nan = uint32(uint32(uint32(magnitude >> uint32(13)) & uint32(0x03FF)) | uint32(0x7E00))
    large = uint32(0x7C00) if magnitude <= uint32(F32_INF) else nan
    found = finite if magnitude < uint32(0x477FF000) else large
    return uint16(uint32(found | uint32(uint32(bits >> uint32(16)) & uint32(0x8000))))


@jit(inline="code")
def f32_to_bf16(value: Any) -> Any:
    """Round float32 to bf16 bits (uint16), to nearest, ties to even; NaN stays a quiet NaN."""
    bits = float32(value).view(uint32)
    high = uint32(bits >> uint32(16))
    rounded = uint32(uint32(bits + uint32(uint32(high & uint32(1)) + uint32(0x7FFF))) >> uint32(16))
    finite = uint32(bits & uint32(0x7FFFFFFF)) <= uint32(F32_INF)
    return uint16(rounded if finite else uint32(high | uint32(0x0040)))


@jit(inline="code")
def block_length(block: Any) -> Any:
    """Length of an array of 32 elements: a number that LLVM does not know, only that it is at most 32."""
    return block.size & 32


@jit(inline="code")
def magnitude_bits(value: Any) -> Any:
    """Bits of a float32 without its sign, int32."""
    return int32(float32(value).view(int32) & int32(0x7FFFFFFF))


@jit(inline="code")
def is_infinite(value: Any) -> Any:
    """Tell whether a float32 is infinite or NaN."""
    return magnitude_bits(value) >= int32(F32_INF)


@jit(inline="code")
def nearest(value: Any) -> Any:
    """Round float32 to int32, ties to even; right below 2**22 in magnitude."""
    # In a sum with 1.5 * 2**23 the last place is worth 1: the addition does the rounding.
    return int32(float32(float32(value) + float32(1.5 * 2.0**23)).view(int32) - int32(0x4B400000))


def widen(value: Any) -> Any:
    """Inside a kernel: float32 of an element of an array that :func:`for_reading` has made.

    Examples
    --------
    See :func:`for_reading` for a kernel that uses it. Outside of one it is an error:

    >>> from qformats.kernels.cpu import widen
    >>> try:
    ...     widen(1)
    ... except TypeError as error:
    ...     print(error)
    is for compiled kernels: call it in a function under cpu.jit()
    """
    raise TypeError("is for compiled kernels: call it in a function under cpu.jit()")


def write(array: Any, place: Any, value: Any) -> None:
    """Inside a kernel: ``array[place] = value``, rounded to the format of the array, ties to even.

    Examples
    --------
    See :func:`for_writing` for a kernel that uses it. Outside of one it is an error:

    >>> from qformats.kernels.cpu import write
    >>> try:
    ...     write([0], 0, 1)
    ... except TypeError as error:
    ...     print(error)
    is for compiled kernels: call it in a function under cpu.jit()
    """
    raise TypeError("is for compiled kernels: call it in a function under cpu.jit()")


def round_to(value: Any, array: Any) -> Any:
    """Inside a kernel: a float32 rounded to the format of `array`, as float32.

    Examples
    --------
    >>> import numpy as np
    >>> from qformats.kernels.cpu import for_writing, jit, round_to
    >>> @jit()
    ... def rounded(value, like):
    ...     return round_to(value, like)
    >>> rounded(np.float32(0.1), for_writing(np.zeros(1, np.float16)))
    0.0999755859375
    """
    raise TypeError("is for compiled kernels: call it in a function under cpu.jit()")


def _widen(value: Any) -> Any:
    if value == types.float32:
        return lambda value: value
    if value == types.uint16:
        return lambda value: f16_to_f32(value)
    return lambda value: bf16_to_f32(value)


def _write(array: Any, place: Any, value: Any) -> Any:
    def same(array: Any, place: Any, value: Any) -> None:
        array[place] = value

    def to_f16(array: Any, place: Any, value: Any) -> None:
        array[place] = f32_to_f16(value)

    def to_bf16(array: Any, place: Any, value: Any) -> None:
        array[place] = int16(f32_to_bf16(value))

    return {types.float32: same, types.uint16: to_f16}.get(array.dtype, to_bf16)


def _round_to(value: Any, array: Any) -> Any:
    if array.dtype == types.float32:
        return lambda value, array: value
    if array.dtype == types.uint16:
        return lambda value, array: f16_to_f32(f32_to_f16(value))
    return lambda value, array: bf16_to_f32(f32_to_bf16(value))


overload(widen, strict=False)(_widen)
overload(write, strict=False)(_write)
overload(round_to, strict=False)(_round_to)


_CHUNK = 1 << 16
"""Values that are counted in 32 bits."""


@jit()
def _cast(source: Any, target: Any, limit: Any) -> Any:
    """Convert; count the values whose float32 has the bits `limit` or more, without its sign."""
    total: Any = 0
    for start in range(0, source.size, _CHUNK):
        count = uint32(0)
        part, out = source[start : start + _CHUNK], target[start : start + _CHUNK]
        for i in range(part.size):
            value = widen(part[i])
            write(out, i, value)
            count = uint32(count + uint32(magnitude_bits(value) >= limit))
        total += count
    return total


@jit()
def _count(bits: Any, magnitude: Any, infinity: Any) -> Any:
    total: Any = 0
    for start in range(0, bits.size, _CHUNK):
        count = uint32(0)
        part = bits[start : start + _CHUNK]
        for i in range(part.size):
            count = uint32(count + uint32((part[i] & magnitude) >= infinity))
        total += count
    return total


@jit()
def _join(pairs: Any, packed: Any, flip: Any) -> None:
    for i in range(packed.size):
        packed[i] = uint8(uint16(uint16(pairs[i] << uint16(4)) | uint16(pairs[i] >> uint16(8))) ^ flip)


@jit()
def _split(packed: Any, pairs: Any, flip: Any) -> None:
    for i in range(packed.size):
        wide = uint16(packed[i] ^ flip)
        pairs[i] = uint16(uint16(wide >> uint16(4)) | uint16(uint16(wide & uint16(15)) << uint16(8)))


def join_nibbles(codes: NDArray[Any], packed: NDArray[Any], flip: int = 0) -> None:
    """Put two neighbouring codes of 4 bits into each byte, the first one in its high half.

    Parameters
    ----------
    codes : ndarray
        uint8, C-contiguous, 0 to 15, twice as many as there are bytes.
    packed : ndarray
        uint8 or int8, C-contiguous; overwritten.
    flip : int
        Bits of a code to turn over, such as 8 to make unsigned codes signed.

    Examples
    --------
    >>> import numpy as np
    >>> from qformats.kernels.cpu import join_nibbles
    >>> packed = np.zeros(2, np.uint8)
    >>> join_nibbles(np.array([1, 2, 3, 4], np.uint8), packed)
    >>> [hex(byte) for byte in packed.tolist()]
    ['0x12', '0x34']
    """
    pairs = for_reading(codes.reshape(-1).view(np.uint8).view("<u2"))
    _join(pairs, packed.reshape(-1).view(np.uint8), np.uint16(flip * 17))


def split_nibbles(packed: NDArray[Any], codes: NDArray[Any], flip: int = 0) -> None:
    """Give every code its own byte, the inverse of :func:`join_nibbles`.

    Examples
    --------
    >>> import numpy as np
    >>> from qformats.kernels.cpu import split_nibbles
    >>> codes = np.zeros(4, np.uint8)
    >>> split_nibbles(np.array([0x12, 0x34], np.uint8), codes)
    >>> codes.tolist()
    [1, 2, 3, 4]
    """
    pairs = codes.reshape(-1).view(np.uint8).view("<u2")
    _split(for_reading(packed.reshape(-1).view(np.uint8)), pairs, np.uint8(flip * 17))


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

    Examples
    --------
    >>> import numpy as np
    >>> from qformats.kernels.cpu import cast
    >>> target = np.zeros(3, np.float16)
    >>> cast(np.array([0.1, 1e6, 2.0], np.float32), target), target.tolist()
    (1, [0.0999755859375, inf, 2.0])
    """
    kinds = float_kind(source.dtype, "dtype of the source"), float_kind(target.dtype, "dtype of the target")
    if source.shape != target.shape:
        raise ShapeError("target of a cast", target.shape, f"the shape {source.shape} of its source")
    _check_contiguous(source, "source of a cast")
    _check_contiguous(target, "target of a cast")
    return int(_cast(for_reading(source, -1), for_writing(target, -1), np.int32(_TOO_LARGE[kinds[1]])))


def count_nonfinite(source: NDArray[Any]) -> int:
    """Count NaN and infinities in float32, float16 or uint16 (bf16 bits) values; C-contiguous, any shape.

    Examples
    --------
    >>> import numpy as np
    >>> from qformats.kernels.cpu import count_nonfinite
    >>> count_nonfinite(np.array([1.0, np.nan, np.inf], np.float32))
    2
    """
    kind = float_kind(source.dtype)
    _check_contiguous(source, "array to check")
    bits = for_reading(source.reshape(-1).view(np.uint32 if kind == 0 else np.uint16))
    return int(_count(bits, *(bits.dtype.type(limit[kind]) for limit in (_MAGNITUDE, _INFINITY))))


def first_nonfinite(source: NDArray[Any]) -> int | None:
    """Find the flat index of the first NaN or infinity, or None; arguments as for `count_nonfinite`.

    Examples
    --------
    >>> import numpy as np
    >>> from qformats.kernels.cpu import first_nonfinite
    >>> first_nonfinite(np.array([1.0, np.nan, np.inf], np.float32)), first_nonfinite(np.ones(2, np.float32))
    (1, None)
    """
    kind = float_kind(source.dtype)
    _check_contiguous(source, "array to check")
    bits: NDArray[Any] = source.reshape(-1).view(np.uint32 if kind == 0 else np.uint16)
    chunk = 1 << 18
    for start in range(0, bits.size, chunk):
        hits = np.flatnonzero((bits[start : start + chunk] & _MAGNITUDE[kind]) >= _INFINITY[kind])
        if hits.size:
            return start + int(hits[0])
    return None
