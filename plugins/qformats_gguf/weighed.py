"""Scales of q4_0, q4_1, q5_0 and q5_1 where columns differ in importance, searched as llama.cpp does.

The searches are those of the super-blocks; a block of 32 is what there is a sub-block, and its scale is stored as it is
found. Source: llama.cpp:ggml/src/ggml-quants.c (``quantize_row_q4_0_impl`` and its siblings). This module imports
numba. Import it inside functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import float32, uint8
from numpy.typing import NDArray

from qformats.kernels import cpu
from qformats_gguf.superblocks import affine as affine_module
from qformats_gguf.superblocks import lanes
from qformats_gguf.superblocks import symmetric as symmetric_module
from qformats_gguf.superblocks.affine import affine
from qformats_gguf.superblocks.lanes import TILE, clamped
from qformats_gguf.superblocks.symmetric import symmetric

__all__ = ["minimum_search", "signed_search", "weights_of"]

_BLOCK = 32
_WIDTH = TILE // _BLOCK


def weights_of(values: NDArray[np.float32], importance: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weight of each element's squared error: its importance times ``sqrt(mean square of the row + its square)``.

    Parameters
    ----------
    values : ndarray
        float32 ``(N, K)``.
    importance : ndarray
        float32 ``(K,)`` or ``(N, K)``.
    """
    squares = values * values
    # In C's order: one element after the other.
    mean = np.cumsum(squares, axis=1, dtype=np.float32)[:, -1:] / np.float32(values.shape[1])
    return np.ascontiguousarray(importance * np.sqrt(mean + squares))


@cpu.jit(inline="code")
def _load(source: Any, first: Any, count: Any, x: Any) -> None:
    x[:, count:] = float32(0)
    for lane in range(count):
        for i in range(x.shape[0]):
            x[i, lane] = source[first + lane, i]


@cpu.jit(lanes.__file__, symmetric_module.__file__)
def _signed(source: Any, weights: Any, half: Any, codes: Any, scales: Any) -> None:
    total, size = source.shape
    x, w = np.empty((size, _WIDTH), np.float32), np.empty((size, _WIDTH), np.float32)
    found, scratch = np.empty((3, _WIDTH), np.float32), np.empty((5, _WIDTH), np.float32)
    for first in range(0, total, _WIDTH):
        count = min(_WIDTH, total - first)
        _load(source, first, count, x)
        _load(weights, first, count, w)
        symmetric(x, w, half, found, scratch)
        for lane in range(count):
            number = first + lane
            scales[number] = found[0, lane]
            for i in range(size):
                code = clamped(float32(found[1, lane] * x[i, lane]), -half, half - 1) + half
                codes[number, i] = uint8(code) if found[2, lane] != 0 else uint8(0)


@cpu.jit(lanes.__file__, affine_module.__file__)
def _minimum(source: Any, weights: Any, top: Any, codes: Any, scales: Any, minima: Any) -> None:
    total, size = source.shape
    x, w = np.empty((size, _WIDTH), np.float32), np.empty((size, _WIDTH), np.float32)
    found, scratch = np.empty((4, _WIDTH), np.float32), np.empty((12, _WIDTH), np.float32)
    for first in range(0, total, _WIDTH):
        count = min(_WIDTH, total - first)
        _load(source, first, count, x)
        _load(weights, first, count, w)
        affine(x, w, top, float32(-0.9), float32(0.05), 36, False, found, scratch)
        for lane in range(count):
            number = first + lane
            scales[number], minima[number] = found[0, lane], found[1, lane]
            inverse, base = found[2, lane], found[3, lane]
            for i in range(size):
                codes[number, i] = uint8(clamped(float32(inverse * float32(x[i, lane] - base)), 0, top))


def signed_search(
    values: NDArray[np.float32], weights: NDArray[np.float32], half: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes ``(N, K)`` and scales ``(N, blocks)`` of q4_0 (`half` 8) and q5_0 (16); arguments float32 ``(N, K)``."""
    codes = np.empty(values.shape, np.uint8)
    scales = np.empty(values.size // _BLOCK, np.float32)
    _signed(*map(_blocks, (values, weights)), half, codes.reshape(-1, _BLOCK), scales)
    return codes, scales.reshape(len(values), -1)


def minimum_search(
    values: NDArray[np.float32], weights: NDArray[np.float32], top: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """Codes, scales and minima of q4_1 (`top` 15) and q5_1 (31); see :func:`signed_search`."""
    codes = np.empty(values.shape, np.uint8)
    scales = np.empty(values.size // _BLOCK, np.float32)
    minima = np.empty_like(scales)
    _minimum(*map(_blocks, (values, weights)), top, codes.reshape(-1, _BLOCK), scales, minima)
    return codes, scales.reshape(len(values), -1), minima.reshape(len(values), -1)


def _blocks(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return cpu.for_reading(np.ascontiguousarray(values).reshape(-1, _BLOCK))
