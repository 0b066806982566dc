"""Encoders and decoders of the bitsandbytes formats, for the processor.

Two codes of 4 bits share a byte, the first one in its high half. Blocks run over the flattened weight; every block
given to a kernel is a whole number of 32 elements, and callers fill the last one up with zeros. The arithmetic is
float32 in the order of bitsandbytes:bitsandbytes/backends/default/ops.py, never fused.

This module imports numba. Import it inside functions.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy import float32, int8, int32, uint8
from numpy.typing import NDArray

from qformats.errors import ConfigError, ShapeError, UnknownFormatError
from qformats.kernels import cpu
from qformats.kernels.cpu import Outcome
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
"""Every block size is a multiple."""
_TABLES = {"nf4": tables.NF4, "fp4": tables.FP4}
_SMALLEST = 1e-38
"""Blocks smaller than this are multiplied by its inverse, not by infinity."""
_NF4 = np.array(tables.NF4_THRESHOLDS, np.float32)
_FP4 = np.array(tables.FP4_THRESHOLDS, np.float32)


@cpu.jit(tables.__file__, inline="code")
def _nf4(value: Any) -> Any:
    """Code of a value in [-1, 1]."""
    code = int32(0)
    for number in range(15):
        code = int32(code + int32(value > _NF4[number]))
    return code


@cpu.jit(tables.__file__, inline="code")
def _fp4(value: Any) -> Any:
    """Code of a value in [-1, 1]; of the two zeros the first one."""
    magnitude = int32(cpu.magnitude_bits(value)).view(float32)
    level = int32(0)
    for number in range(7):
        level = int32(level + int32(magnitude > _FP4[number]))
    # Magnitudes ascend in the order of the codes 0 1 6 7 4 5 2 3.
    code = int32(level ^ int32(int32(level & int32(2)) << int32(1)))
    return int32(code | int32(int32(value < -_FP4[0]) << int32(3)))


@cpu.jit(tables.__file__)
def _quantize(source: Any, packed: Any, absmax: Any, nf4: Any) -> Any:
    worst = int32(0)
    for number in range(source.shape[0]):
        x, codes = source[number], packed[number]
        largest = int32(0)
        for j in range(x.size):
            largest = max(largest, cpu.magnitude_bits(cpu.widen(x[j])))
        worst = max(worst, largest)
        scale = int32(largest).view(float32)
        absmax[number] = scale
        inverse = float32(float32(1.0) / (scale if scale > float32(_SMALLEST) else float32(_SMALLEST)))
        if nf4:
            for j in range(codes.size):
                high = _nf4(float32(cpu.widen(x[2 * j]) * inverse))
                low = _nf4(float32(cpu.widen(x[2 * j + 1]) * inverse))
                codes[j] = uint8(int32(high << int32(4)) | low)
        else:
            for j in range(codes.size):
                high = _fp4(float32(cpu.widen(x[2 * j]) * inverse))
                low = _fp4(float32(cpu.widen(x[2 * j + 1]) * inverse))
                codes[j] = uint8(int32(high << int32(4)) | low)
    return worst >= int32(cpu.F32_INF)


@cpu.jit()
def _dequantize(pairs: Any, packed: Any, absmax: Any, out: Any) -> None:
    found = np.empty(packed.shape[1], np.uint64)
    levels = found.view(np.float32)
    for number in range(out.shape[0]):
        codes, values, scale = packed[number], out[number], absmax[number]
        for j in range(codes.size):
            found[j] = pairs[codes[j]]
        for j in range(values.size):
            cpu.write(values, j, float32(levels[j] * scale))


@cpu.jit()
def _quantize_rows(source: Any, codes: Any, absmax: Any, rounded: Any) -> Any:
    """Int8; values are rounded to the format of the array `rounded` first."""
    worst = int32(0)
    for row in range(source.shape[0]):
        x, line = source[row], codes[row]
        largest = int32(0)
        for j in range(x.size):
            largest = max(largest, cpu.magnitude_bits(cpu.widen(x[j])))
        # The maximum of rounded values is the rounded maximum.
        scale = cpu.round_to(int32(largest).view(float32), rounded)
        worst = max(worst, cpu.magnitude_bits(scale))
        absmax[row] = scale
        factor = float32(float32(float32(1.0) / scale) * float32(127.0)) if scale != 0 else float32(0.0)
        for j in range(x.size):
            value = cpu.round_to(cpu.widen(x[j]), rounded)
            line[j] = int8(cpu.nearest(float32(value * factor)))
    return worst >= int32(cpu.F32_INF)


@cpu.jit()
def _dequantize_rows(codes: Any, scale: Any, out: Any) -> None:
    for row in range(codes.shape[0]):
        line, values, step = codes[row], out[row], scale[row]
        for j in range(line.size):
            cpu.write(values, j, float32(float32(int32(line[j])) * step))


@functools.cache
def _pairs(kind: str) -> NDArray[np.uint64]:
    """Values of the two codes of every byte: two float32 numbers in 64 bits."""
    table = np.array(_TABLES[kind], np.float32)
    return np.stack([np.repeat(table, 16), np.tile(table, 16)], axis=1).reshape(-1).view(np.uint64)


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
    cpu.float_kind(source.dtype, "dtype of the weights")
    done = blocks * block_size
    bad = _quantize(
        cpu.for_reading(source[:done], (blocks, block_size)),
        packed[: done // 2].reshape(blocks, block_size // 2),
        absmax[:blocks],
        kind == "nf4",
    )
    if done < source.size:
        last = np.zeros((1, block_size), source.dtype)
        last[0, : source.size - done] = source[done:]
        codes = np.empty((1, block_size // 2), np.uint8)
        bad |= _quantize(cpu.for_reading(last), codes, absmax[blocks:], kind == "nf4")
        packed[done // 2 :] = codes[0, : packed.size - done // 2]
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
    cpu.float_kind(out.dtype, "dtype of the output")
    pairs, done = _pairs(kind), blocks * block_size
    _dequantize(
        pairs,
        cpu.for_reading(packed[: done // 2], (blocks, block_size // 2)),
        cpu.for_reading(absmax[:blocks]),
        cpu.for_writing(out[:done], (blocks, block_size)),
    )
    if done < out.size:
        codes = np.zeros((1, block_size // 2), np.uint8)
        codes[0, : packed.size - done // 2] = packed[done // 2 :]
        last = np.empty((1, block_size), out.dtype)
        _dequantize(pairs, cpu.for_reading(codes), cpu.for_reading(absmax[blocks:]), cpu.for_writing(last))
        out[done:] = last[0, : out.size - done]


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
    whole = count // 2
    cpu.join_nibbles(codes[: 2 * whole], packed[:whole])
    if count % 2:
        packed[-1] = codes[-1] << 4 | np.uint8(spare)


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
    whole = count // 2
    cpu.split_nibbles(packed[:whole], codes[: 2 * whole])
    if count % 2:
        codes[-1] = packed[-1] >> 4


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
    cpu.float_kind(source.dtype, "dtype of the weights")
    # What is float16 already need not be rounded.
    rounded = np.empty(0, np.float32 if source.dtype == np.float16 else np.float16)
    values, like = cpu.for_reading(source), cpu.for_reading(rounded)
    if not _quantize_rows(values, codes, absmax, like):
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
    cpu.float_kind(out.dtype, "dtype of the output")
    _dequantize_rows(cpu.for_reading(codes), cpu.for_reading(scale), cpu.for_writing(out))
