"""GLM rows on the processor: floats to packed bytes and back, in one pass over each row.

A row is ``K * bits / 8`` bytes of two's complement codes and one scale. Of a byte with two codes the high nibble
is the even column. Source: GLM-130B:cuda/quantization.cu; the rule of rounding is that of
:class:`qformats_glm.grid.RowGrid`, whose bytes these kernels give.

This module imports numba. Import it inside functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import float32, int8, int32
from numpy.typing import NDArray

from qformats.errors import ConfigError, ShapeError
from qformats.kernels import cpu
from qformats.kernels.cpu import Outcome

__all__ = ["Outcome", "dequantize", "pack", "quantize", "unpack"]


@cpu.jit(inline="code")
def _code(value: Any, divisor: Any, top: Any, quotient: Any) -> Any:
    """Signed code of a value; the quotient is rounded to the format of the array `quotient`."""
    steps = cpu.round_to(float32(value / divisor), quotient)
    steps = steps if steps < top else top
    return cpu.nearest(steps if steps > -top else float32(-top))


@cpu.jit()
def _quantize(source: Any, packed: Any, scales: Any, quotient: Any, bits: Any) -> Any:
    top = float32((1 << (bits - 1)) - 1)
    worst, overflow = int32(0), 0
    for row in range(source.shape[0]):
        x, codes = source[row], packed[row]
        largest = int32(0)
        for j in range(x.size):
            largest = max(largest, cpu.magnitude_bits(cpu.widen(x[j])))
        worst = max(worst, largest)
        cpu.write(scales, row, cpu.round_to(float32(int32(largest).view(float32) / top), source))
        scale = cpu.widen(scales[row])
        overflow += cpu.is_infinite(scale)
        divisor = scale if scale != 0 else float32(1.0)
        if bits == 8:
            for j in range(x.size):
                codes[j] = int8(_code(cpu.widen(x[j]), divisor, top, quotient))
        else:
            for j in range(codes.size):
                high = _code(cpu.widen(x[2 * j]), divisor, top, quotient)
                low = _code(cpu.widen(x[2 * j + 1]), divisor, top, quotient)
                codes[j] = int8(int32(high << int32(4)) | int32(low & int32(15)))
    return -1 if worst >= int32(cpu.F32_INF) else overflow


@cpu.jit()
def _dequantize(packed: Any, scales: Any, out: Any, bits: Any) -> None:
    for row in range(out.shape[0]):
        codes, values, scale = packed[row], out[row], scales[row]
        if bits == 8:
            for j in range(values.size):
                cpu.write(values, j, float32(float32(int32(codes[j])) * scale))
        else:
            for j in range(codes.size):
                pair = int32(codes[j])
                cpu.write(values, 2 * j, float32(float32(int32(pair >> int32(4))) * scale))
                low = int32(int32(int32(pair & int32(15)) ^ int32(8)) - int32(8))
                cpu.write(values, 2 * j + 1, float32(float32(low) * scale))


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
    cpu.float_kind(source.dtype, "dtype of the weights")
    cpu.float_kind(scales.dtype, "dtype of the scales")
    # Of two different dtypes the quotient takes the wider one, and of the two halves float32.
    quotient = np.empty(0, source.dtype if source.dtype == scales.dtype else np.float32)
    values, like = cpu.for_reading(source), cpu.for_reading(quotient)
    overflow = int(_quantize(values, packed, cpu.for_writing(scales), like, bits))
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
    cpu.float_kind(out.dtype, "dtype of the output")
    _dequantize(cpu.for_reading(packed), cpu.for_reading(scales), cpu.for_writing(out), bits)


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
    cpu.split_nibbles(packed, codes, flip=8)


def pack(codes: NDArray[np.uint8], packed: NDArray[np.int8]) -> None:
    """Unsigned codes to nibbles, the inverse of `unpack`.

    Raises
    ------
    ShapeError
        If the arrays do not fit together.
    """
    _check_nibbles(packed, codes)
    cpu.join_nibbles(codes, packed, flip=8)
