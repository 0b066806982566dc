"""Codes to words of gemm and back on the processor, in tiles that stay in the first cache.

This module imports numba. Import it inside functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import uint8, uint32
from numpy.typing import NDArray

from qformats.errors import ShapeError
from qformats.kernels import cpu

__all__ = ["join", "split"]

_TILE = 64
"""Columns of a tile, and words of a line of it: 64 words are four cache lines."""


@cpu.jit()
def _join(codes: Any, words: Any) -> None:
    tile = np.empty((_TILE, _TILE), np.uint32)
    groups, columns = codes.shape[0] // 8, codes.shape[1]
    for first in range(0, groups, _TILE):
        height = min(_TILE, groups - first)
        for start in range(0, columns, _TILE):
            width = min(_TILE, columns - start)
            for g in range(height):
                row = 8 * (first + g)
                part = codes[row : row + 8, start : start + width]
                line = tile[g]
                for c in range(width):
                    low = uint32(part[0, c]) | uint32(part[2, c]) << uint32(4)
                    low |= uint32(part[4, c]) << uint32(8) | uint32(part[6, c]) << uint32(12)
                    high = uint32(part[1, c]) | uint32(part[3, c]) << uint32(4)
                    high |= uint32(part[5, c]) << uint32(8) | uint32(part[7, c]) << uint32(12)
                    line[c] = low | high << uint32(16)
            for c in range(width):
                found = words[start + c, first : first + height]
                for g in range(height):
                    found[g] = tile[g, c]


@cpu.jit()
def _split(words: Any, codes: Any) -> None:
    tile = np.empty((_TILE, _TILE), np.uint32)
    groups, columns = codes.shape[0] // 8, codes.shape[1]
    for first in range(0, groups, _TILE):
        height = min(_TILE, groups - first)
        for start in range(0, columns, _TILE):
            width = min(_TILE, columns - start)
            for c in range(width):
                found = words[start + c, first : first + height]
                for g in range(height):
                    tile[g, c] = found[g]
            for g in range(height):
                row = 8 * (first + g)
                part = codes[row : row + 8, start : start + width]
                line = tile[g]
                for place in range(8):
                    # Output 2 i is the i-th number of four bits, output 2 i + 1 the one four further up.
                    shift = uint32(4 * (place // 2) + 16 * (place % 2))
                    for c in range(width):
                        part[place, c] = uint8(line[c] >> shift & uint32(15))


def _check(codes: NDArray[np.uint8], words: NDArray[np.int32]) -> None:
    wanted = (codes.shape[1], codes.shape[0] // 8)
    if codes.shape[0] % 8 or words.shape != wanted or codes.dtype != np.uint8 or words.dtype != np.int32:
        found = f"{words.shape} of {words.dtype} beside {codes.shape} of {codes.dtype}"
        raise ShapeError("words", found, "int32 (C, N / 8) beside uint8 (N, C)")


def join(codes: NDArray[np.uint8], words: NDArray[np.int32]) -> None:
    """Codes to words.

    Parameters
    ----------
    codes : ndarray
        uint8, ``(N, C)``, from 0 to 15, C-contiguous, `N` a multiple of 8.
    words : ndarray
        int32, ``(C, N / 8)``, C-contiguous; overwritten.

    Raises
    ------
    ShapeError
        If they do not fit together.
    """
    _check(codes, words)
    _join(cpu.for_reading(codes), words.view(np.uint32))


def split(words: NDArray[np.int32], codes: NDArray[np.uint8]) -> None:
    """Words to codes, the inverse of :func:`join`; `codes` is overwritten.

    Raises
    ------
    ShapeError
        If they do not fit together.
    """
    _check(codes, words)
    _split(cpu.for_reading(words.view(np.uint32)), codes)
