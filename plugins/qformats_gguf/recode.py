"""Codes and scales to GGUF blocks and back, for the processor: bytes move, no number is rounded.

Layouts as in :mod:`qformats_gguf.kernels`. This module imports numba. Import it inside functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import uint8, uint32
from numpy.typing import NDArray

from qformats.errors import ShapeError
from qformats.kernels import cpu
from qformats_gguf import kernels
from qformats_gguf.blocks import BLOCK, LAYOUTS
from qformats_gguf.kernels import fifth_bits, get_half, put_half, put_nibbles

__all__ = ["pack", "unpack"]


@cpu.jit(inline="code")
def _fifths(block: Any, codes_at: Any) -> Any:
    """Read the highest bits of codes of 5 bits; 0 where codes have 4."""
    word = uint32(0)
    if codes_at >= 6:
        for j in range(4):
            word = uint32(word | uint32(uint32(block[codes_at - 4 + j]) << uint32(8 * j)))
    return word


@cpu.jit(kernels.__file__)
def _pack(
    codes: Any,
    words: Any,
    scale: Any,
    minimum: Any,
    out: Any,
    bits: Any,
    codes_at: Any,
    has_minimum: Any,
) -> None:
    """Make blocks; `words` are `codes`, 8 at a time."""
    for number in range(out.shape[0]):
        values, block = codes[number], out[number]
        put_half(block, 0, scale[number])
        if has_minimum:
            put_half(block, 2, minimum[number])
        if bits == 8:
            stored = block[codes_at:]
            for j in range(cpu.block_length(values)):
                stored[j] = uint8(values[j] ^ uint8(0x80))
        else:
            put_nibbles(values, block[codes_at:])
            if bits == 5:
                for j in range(4):
                    block[codes_at - 4 + j] = fifth_bits(words[4 * number + j])


@cpu.jit(inline="code")
def _fifth(word: Any, j: Any) -> Any:
    """Give bit `j` of a word as bit 4 of a code."""
    return uint32(uint32(uint32(word >> uint32(j)) & uint32(1)) << uint32(4))


@cpu.jit(kernels.__file__)
def _unpack(
    blocks: Any, codes: Any, scale: Any, minimum: Any, bits: Any, codes_at: Any, has_minimum: Any
) -> None:
    for number in range(blocks.shape[0]):
        block, values = blocks[number], codes[number]
        scale[number] = get_half(block, 0)
        if has_minimum:
            minimum[number] = get_half(block, 2)
        stored = block[codes_at:]
        if bits == 8:
            for j in range(cpu.block_length(values)):
                values[j] = uint8(stored[j] ^ uint8(0x80))
        elif bits == 4:
            for j in range(cpu.block_length(values) >> 1):
                values[j], values[j + 16] = uint8(stored[j] & uint8(15)), uint8(stored[j] >> uint8(4))
        else:
            word = _fifths(block, codes_at)
            for j in range(cpu.block_length(values) >> 1):
                values[j] = uint8(uint8(stored[j] & uint8(15)) | uint8(_fifth(word, j)))
                values[j + 16] = uint8(uint8(stored[j] >> uint8(4)) | uint8(_fifth(word, j + 16)))


def _run(
    type_name: str,
    packing: bool,
    codes: NDArray[np.uint8],
    scale: NDArray[np.uint16],
    minimum: NDArray[np.uint16] | None,
    blocks: NDArray[np.uint8],
) -> None:
    kind = LAYOUTS[type_name]
    rows, columns = codes.shape
    count = columns // BLOCK
    halves = [scale] + ([minimum] if minimum is not None else [])
    shapes: list[tuple[NDArray[Any], tuple[int, int]]]
    shapes = [(codes, (rows, count * BLOCK)), (blocks, (rows, count * kind.size))]
    shapes += [(half, (rows, count)) for half in halves]
    for array, shape in shapes:
        if array.shape != shape or not array.flags.c_contiguous:
            raise ShapeError(f"a part of {type_name}", array.shape, f"{shape}, C-contiguous")
    if kind.minimum != (minimum is not None):
        raise ShapeError(f"minimum of {type_name}", None, "one value per block" if kind.minimum else "none")
    # Where there is no minimum, the kernel gets an array that it leaves alone.
    first, second = (half.reshape(-1) for half in (scale, scale if minimum is None else minimum))
    values, packed = codes.reshape(-1, BLOCK), blocks.reshape(-1, kind.size)
    layout = (kind.bits, kind.codes_at, kind.minimum)
    if packing:
        parts: list[NDArray[Any]] = [values, codes.reshape(-1).view(np.uint64), first, second]
        _pack(*map(cpu.for_reading, parts), packed, *layout)
    else:
        _unpack(cpu.for_reading(packed), values, first, second, *layout)


def pack(
    type_name: str,
    codes: NDArray[np.uint8],
    scale: NDArray[np.uint16],
    minimum: NDArray[np.uint16] | None,
    out: NDArray[np.uint8],
) -> None:
    """Codes and scales to blocks.

    Parameters
    ----------
    type_name : str
        ``q4_0``, ``q4_1``, ``q5_0``, ``q5_1`` or ``q8_0``.
    codes : ndarray
        ``(rows, K)``, unsigned; those of q8_0 are 128 more than what is stored.
    scale, minimum : ndarray
        fp16 bits, ``(rows, K / 32)``.
    out : ndarray
        ``(rows, K / 32 * TYPES[type_name])``; overwritten.

    Raises
    ------
    ShapeError
        If the arrays do not fit together, or are not C-contiguous.
    """
    _run(type_name, True, codes, scale, minimum, out)


def unpack(
    type_name: str,
    packed: NDArray[np.uint8],
    codes: NDArray[np.uint8],
    scale: NDArray[np.uint16],
    minimum: NDArray[np.uint16] | None,
) -> None:
    """Blocks to codes and scales, the inverse of :func:`pack`; all but `packed` are overwritten.

    Raises
    ------
    ShapeError
        If the arrays do not fit together, or are not C-contiguous.
    """
    _run(type_name, False, codes, scale, minimum, packed)
