"""Codes and scales to blocks and back, and blocks to values: bytes move, no number is rounded but a sum with a minimum.

Layouts are :mod:`qformats_gguf.superblocks.layout`'s. This module imports numba. Import it inside functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import float32, int8, int32, uint8
from numpy.typing import NDArray

from qformats.errors import ShapeError
from qformats.kernels import cpu
from qformats_gguf import kernels
from qformats_gguf.kernels import get_half, put_half
from qformats_gguf.superblocks.layout import SuperLayout

__all__ = ["dequantize", "pack", "unpack"]

_CODINGS = ("none", "nibbles", "six", "pairs", "bytes", "split")
_NONE, _NIBBLES, _SIX, _PAIRS, _BYTES, _SPLIT = range(6)


@cpu.jit()
def _put_plane(codes: Any, target: Any, shift: Any, width: Any, stride: Any) -> None:
    """Write some bits of all codes of a block, see :mod:`qformats_gguf.superblocks.layout`."""
    together = 8 // width
    mask = uint8((1 << width) - 1)
    for n in range(codes.size // (stride * together)):
        stored = target[n * stride : (n + 1) * stride]
        for t in range(together):
            part = codes[(n * together + t) * stride : (n * together + t + 1) * stride]
            place = uint8(t * width)
            if t == 0:
                for i in range(stored.size):
                    stored[i] = uint8(uint8(part[i] >> uint8(shift)) & mask)
            else:
                for i in range(stored.size):
                    bits = uint8(uint8(part[i] >> uint8(shift)) & mask)
                    stored[i] = uint8(stored[i] | uint8(bits << place))


@cpu.jit()
def _get_plane(stored: Any, codes: Any, shift: Any, width: Any, stride: Any) -> None:
    """Inverse of :func:`_put_plane`: adds the bits to codes that have none there yet."""
    together = 8 // width
    mask = uint8((1 << width) - 1)
    for n in range(codes.size // (stride * together)):
        part = stored[n * stride : (n + 1) * stride]
        for t in range(together):
            target = codes[(n * together + t) * stride : (n * together + t + 1) * stride]
            place = uint8(t * width)
            for i in range(part.size):
                bits = uint8(uint8(part[i] >> place) & mask)
                target[i] = uint8(target[i] | uint8(bits << uint8(shift)))


@cpu.jit()
def _put_scales(block: Any, coding: Any, at: Any, scales: Any, minima: Any) -> None:
    """Write the whole numbers by which a block's float16 scales are multiplied."""
    if coding == _NIBBLES:
        for j in range(16):
            block[at + j] = uint8(uint8(scales[j]) | uint8(uint8(minima[j]) << uint8(4)))
    elif coding == _BYTES:
        for j in range(16):
            block[at + j] = uint8(scales[j])
    elif coding == _SIX:
        for j in range(12):
            block[at + j] = uint8(0)
        for j in range(16):
            code = int32(int32(scales[j]) + 32)
            low = uint8(int32(code & 15) << (4 * (j // 8)))
            high = uint8(int32(code >> 4) << (2 * (j // 4)))
            block[at + j % 8] = uint8(block[at + j % 8] | low)
            block[at + 8 + j % 4] = uint8(block[at + 8 + j % 4] | high)
    elif coding == _PAIRS:
        for j in range(4):
            s, m = uint8(scales[j + 4]), uint8(minima[j + 4])
            block[at + j] = uint8(uint8(scales[j]) | uint8(uint8(s >> uint8(4)) << uint8(6)))
            block[at + 4 + j] = uint8(uint8(minima[j]) | uint8(uint8(m >> uint8(4)) << uint8(6)))
            block[at + 8 + j] = uint8(uint8(s & uint8(15)) | uint8(m << uint8(4)))
    elif coding == _SPLIT:
        for j in range(6):
            block[at + j] = uint8(0)
        for j in range(8):
            code = int32(int32(scales[j]) + 32)
            low = uint8(int32(code & 15) << (4 * (j % 2)))
            high = uint8(int32(code >> 4) << (2 * (j % 4)))
            block[at + 2 + j // 2] = uint8(block[at + 2 + j // 2] | low)
            block[at + j // 4] = uint8(block[at + j // 4] | high)


@cpu.jit()
def _get_scales(block: Any, coding: Any, at: Any, scales: Any, minima: Any) -> None:
    """Inverse of :func:`_put_scales`."""
    if coding == _NIBBLES:
        for j in range(16):
            scales[j], minima[j] = int8(block[at + j] & uint8(15)), int8(block[at + j] >> uint8(4))
    elif coding == _BYTES:
        for j in range(16):
            scales[j] = int8(block[at + j])
    elif coding == _SIX:
        for j in range(16):
            low = int32(int32(block[at + j % 8]) >> (4 * (j // 8))) & 15
            high = int32(int32(block[at + 8 + j % 4]) >> (2 * (j // 4))) & 3
            scales[j] = int8((low | (high << 4)) - 32)
    elif coding == _PAIRS:
        for j in range(4):
            s, m, rest = int32(block[at + j]), int32(block[at + 4 + j]), int32(block[at + 8 + j])
            scales[j], minima[j] = int8(s & 63), int8(m & 63)
            scales[j + 4] = int8((rest & 15) | ((s >> 6) << 4))
            minima[j + 4] = int8((rest >> 4) | ((m >> 6) << 4))
    elif coding == _SPLIT:
        for j in range(8):
            low = int32(int32(block[at + 2 + j // 2]) >> (4 * (j % 2))) & 15
            high = int32(int32(block[at + j // 4]) >> (2 * (j % 4))) & 3
            scales[j] = int8((low | (high << 4)) - 32)


@cpu.jit(kernels.__file__)
def _pack(
    codes: Any, halves: Any, scales: Any, minima: Any, planes: Any, coding: Any, places: Any, out: Any
) -> None:
    for number in range(out.shape[0]):
        block = out[number]
        for k in range(halves.shape[1]):
            put_half(block, places[1 + k], halves[number, k])
        _put_scales(block, coding, places[0], scales[number], minima[number])
        for k in range(planes.shape[0]):
            _put_plane(codes[number], block[planes[k, 3] :], planes[k, 0], planes[k, 1], planes[k, 2])


@cpu.jit(kernels.__file__)
def _unpack(
    blocks: Any, codes: Any, halves: Any, scales: Any, minima: Any, planes: Any, coding: Any, places: Any
) -> None:
    for number in range(blocks.shape[0]):
        block = blocks[number]
        for k in range(halves.shape[1]):
            halves[number, k] = get_half(block, places[1 + k])
        _get_scales(block, coding, places[0], scales[number], minima[number])
        codes[number, :] = uint8(0)
        for k in range(planes.shape[0]):
            _get_plane(block[planes[k, 3] :], codes[number], planes[k, 0], planes[k, 1], planes[k, 2])


@cpu.jit(kernels.__file__)
def _dequantize(
    blocks: Any, planes: Any, coding: Any, places: Any, levels: Any, per_block: Any, out: Any
) -> None:
    size = out.shape[1]
    sub = size // per_block
    codes = np.empty(size, np.uint8)
    scales, unused = np.ones(per_block, np.int8), np.zeros(per_block, np.int8)
    for number in range(blocks.shape[0]):
        block = blocks[number]
        d = cpu.f16_to_f32(get_half(block, places[1]))
        _get_scales(block, coding, places[0], scales, unused)
        codes[:] = uint8(0)
        for k in range(planes.shape[0]):
            _get_plane(block[planes[k, 3] :], codes, planes[k, 0], planes[k, 1], planes[k, 2])
        for j in range(per_block):
            scale = float32(d * float32(scales[j]))
            part, target = codes[j * sub : (j + 1) * sub], out[number, j * sub : (j + 1) * sub]
            for i in range(target.size):
                cpu.write(target, i, float32(scale * levels[part[i]]))


def _layout(kind: SuperLayout) -> tuple[NDArray[np.int64], int, NDArray[np.int64]]:
    """Planes, coding of the scales, and first bytes of scales, scale and minimum, as kernels take them."""
    first = {"nibbles": "scales", "six": "scales", "pairs": "scales", "bytes": "scales", "split": "scales_h"}
    scales = kind.at(first[kind.coding]) if kind.two_level else 0
    places = np.array([scales, kind.at("d"), kind.at("dmin")], np.int64)
    return np.array(kind.planes, np.int64), _CODINGS.index(kind.coding), places


def _check(kind: SuperLayout, arrays: dict[str, tuple[NDArray[Any], tuple[int, int]]]) -> None:
    for name, (array, shape) in arrays.items():
        if array.shape != shape or not array.flags.c_contiguous:
            raise ShapeError(f"{name} of {kind.name}", array.shape, f"{shape}, C-contiguous")


def pack(
    kind: SuperLayout,
    codes: NDArray[np.uint8],
    halves: NDArray[np.uint16],
    scales: NDArray[np.int8],
    minima: NDArray[np.int8],
    out: NDArray[np.uint8],
) -> None:
    """Codes and scales to blocks.

    Parameters
    ----------
    kind : SuperLayout
        The type.
    codes, halves, scales, minima
        See :func:`qformats_gguf.superblocks.search.search`.
    out : ndarray
        uint8 ``(blocks, bytes of a block)``; overwritten.

    Raises
    ------
    ShapeError
        If the arrays do not fit together, or are not C-contiguous.
    """
    _check_all(kind, codes, halves, scales, minima, out)
    parts = (cpu.for_reading(part) for part in (codes, halves, scales, minima))
    planes, coding, places = _layout(kind)
    _pack(*parts, planes, coding, places, out)


def unpack(
    kind: SuperLayout,
    blocks: NDArray[np.uint8],
    codes: NDArray[np.uint8],
    halves: NDArray[np.uint16],
    scales: NDArray[np.int8],
    minima: NDArray[np.int8],
) -> None:
    """Blocks to codes and scales, the inverse of :func:`pack`; all but `blocks` are overwritten.

    Raises
    ------
    ShapeError
        If the arrays do not fit together, or are not C-contiguous.
    """
    _check_all(kind, codes, halves, scales, minima, blocks)
    planes, coding, places = _layout(kind)
    _unpack(cpu.for_reading(blocks), codes, halves, scales, minima, planes, coding, places)


def _check_all(
    kind: SuperLayout,
    codes: NDArray[np.uint8],
    halves: NDArray[np.uint16],
    scales: NDArray[np.int8],
    minima: NDArray[np.int8],
    blocks: NDArray[np.uint8],
) -> None:
    count = blocks.shape[0]
    _check(
        kind,
        {
            "blocks": (blocks, (count, kind.size)),
            "codes": (codes, (count, kind.block)),
            "halves": (halves, (count, 1 + kind.minimum)),
            "scales": (scales, (count, kind.scales)),
            "minima": (minima, (count, kind.scales)),
        },
    )


def dequantize(kind: SuperLayout, blocks: NDArray[np.uint8], out: NDArray[Any]) -> None:
    """Values of blocks whose codes stand for levels of a table; others are decoded by :mod:`qformats_gguf.rows`.

    Parameters
    ----------
    kind : SuperLayout
        The type.
    blocks : ndarray
        uint8 ``(blocks, bytes of a block)``.
    out : ndarray
        float32, float16 or uint16 (bf16 bits), ``(blocks, elements of a block)``; overwritten. Halves are one rounding
        of the float32 value.

    Raises
    ------
    ShapeError
        If the arrays do not fit together, or are not C-contiguous.
    """
    count = blocks.shape[0]
    _check(kind, {"blocks": (blocks, (count, kind.size)), "values": (out, (count, kind.block))})
    cpu.float_kind(out.dtype, "dtype of the output")
    planes, coding, places = _layout(kind)
    levels = np.array(kind.table, np.float32)
    _dequantize(cpu.for_reading(blocks), planes, coding, places, levels, kind.scales, cpu.for_writing(out))
