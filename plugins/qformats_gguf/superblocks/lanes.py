"""What the searches share: many blocks side by side, as the lanes of vectors.

A *tile* holds 4096 weights transposed: ``x[i, lane]`` is element ``i`` of the sub-block in a lane, so that a loop over
lanes does to hundreds of sub-blocks at once what C does to one, in the same order and with the same roundings. Lane
``j * blocks + b`` is sub-block ``j`` of block ``b``: a loop over ``b`` is again one over neighbours.

This module imports numba. Import it inside functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import float32, int32

from qformats.kernels import cpu

__all__ = ["EPSILON", "TILE", "clamped", "first_extreme", "load", "load_importance", "nearest", "weigh"]

TILE = 4096
"""Weights of a tile: it and as many importances fit a first-level cache of 32 kB."""
EPSILON = np.float32(1e-15)
"""Blocks whose largest magnitude is smaller count as zeros (``GROUP_MAX_EPS``)."""


@cpu.jit(inline="code")
def nearest(value: Any) -> Any:
    """Round to int32, ties to even, as ggml's ``nearest_int`` does: beyond 2**22 in magnitude it wraps around."""
    bits = float32(float32(value) + float32(12582912.0)).view(int32)
    return int32(int32(bits & int32(0x007FFFFF)) - int32(0x00400000))


@cpu.jit(inline="code")
def clamped(value: Any, low: Any, high: Any) -> Any:
    """Nearest whole number in a range, int32."""
    return max(int32(low), min(int32(high), nearest(value)))


@cpu.jit()
def load(source: Any, first: Any, count: Any, sub: Any, x: Any) -> None:
    """Transpose blocks ``[first, first + count)`` into a tile; lanes of blocks that are not there are zeros."""
    lanes = x.shape[1]
    scales = source.shape[1] // sub
    blocks = lanes // scales
    if count < blocks:
        x[:, :] = float32(0)
    for b in range(count):
        for j in range(scales):
            lane = j * blocks + b
            values = source[first + b, j * sub : (j + 1) * sub]
            for i in range(values.size):
                x[i, lane] = values[i]


@cpu.jit()
def load_importance(importance: Any, first: Any, count: Any, sub: Any, w: Any) -> None:
    """Transpose the importances of blocks ``[first, first + count)``.

    `importance` is ``(rows, blocks of a row, elements of a block)``, one row of them for all rows of the weight or one
    for each.
    """
    rows, per_row, size = importance.shape
    scales = size // sub
    blocks = w.shape[1] // scales
    if count < blocks:
        w[:, :] = float32(0)
    for b in range(count):
        row = (first + b) // per_row if rows > 1 else 0
        place = (first + b) % per_row
        for j in range(scales):
            lane = j * blocks + b
            values = importance[row, place, j * sub : (j + 1) * sub]
            for i in range(values.size):
                w[i, lane] = values[i]


@cpu.jit()
def _square_sums(x: Any, blocks: Any, sums: Any) -> None:
    """Sum of squares of every block, from its first element to its last."""
    sums[:] = float32(0)
    for j in range(x.shape[1] // blocks):
        for i in range(x.shape[0]):
            row = x[i, j * blocks : (j + 1) * blocks]
            for b in range(row.size):
                sums[b] = float32(sums[b] + float32(row[b] * row[b]))


@cpu.jit()
def weigh(x: Any, w: Any, blocks: Any, rule: Any, before: Any, after: Any, sums: Any) -> None:
    """Weights of a tile's elements; in `w` there are importances already for the rules that use them.

    Rules: 0 ``x * x``; 1 ``|x|``; 2 ``sqrt(mean of x * x in the sub-block) + |x|``; 3 importance times
    ``sqrt(s + x * x)``, where ``s`` is the block's sum of squares times `before`, divided by `after`; 4 importance; 5
    as 3, with ``s`` of each block in `sums` already.
    """
    lanes = x.shape[1]
    if rule == 2:
        mean = np.zeros(lanes, np.float32)
        for i in range(x.shape[0]):
            row = x[i]
            for lane in range(row.size):
                mean[lane] = float32(mean[lane] + float32(row[lane] * row[lane]))
        for lane in range(mean.size):
            mean[lane] = np.sqrt(float32(mean[lane] / float32(x.shape[0])))
    if rule == 3:
        _square_sums(x, blocks, sums)
        for b in range(sums.size):
            sums[b] = float32(float32(sums[b] * before) / after)
    for i in range(x.shape[0]):
        row, out = x[i], w[i]
        if rule == 0:
            for lane in range(row.size):
                out[lane] = float32(row[lane] * row[lane])
        elif rule == 1:
            for lane in range(row.size):
                out[lane] = abs(row[lane])
        elif rule == 2:
            for lane in range(row.size):
                out[lane] = float32(mean[lane] + abs(row[lane]))
        elif rule in (3, 5):
            for j in range(lanes // blocks):
                values, target = row[j * blocks : (j + 1) * blocks], out[j * blocks : (j + 1) * blocks]
                for b in range(values.size):
                    square = float32(values[b] * values[b])
                    target[b] = float32(target[b] * np.sqrt(float32(sums[b] + square)))


@cpu.jit()
def first_extreme(x: Any, extreme: Any) -> None:
    """Value of largest magnitude in each lane, the first of equal ones, with its sign."""
    extreme[:] = float32(0)
    for i in range(x.shape[0]):
        row = x[i]
        for lane in range(row.size):
            value = row[lane]
            extreme[lane] = value if abs(value) > abs(extreme[lane]) else extreme[lane]
