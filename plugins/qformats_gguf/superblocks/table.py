"""The search for the scale of a table of levels: hundreds of sub-blocks side by side.

Source: llama.cpp:ggml/src/ggml-quants.c (``quantize_row_iq4_nl_impl``, ``best_index_int8``). This module imports numba.
Import it inside functions.
"""

from __future__ import annotations

import itertools
from typing import Any

from numpy import float32, int32

from qformats.kernels import cpu
from qformats_gguf.superblocks import lanes, layout
from qformats_gguf.superblocks.lanes import EPSILON, first_extreme
from qformats_gguf.superblocks.layout import IQ4

__all__ = ["nearest_code", "table"]

_T = tuple(float32(level) for level in IQ4)
_MIDDLES = tuple(float32((low + high) / 2) for low, high in itertools.pairwise(IQ4))
"""Where the nearest level changes; a value on one of them belongs to the upper level, and so does NaN."""


@cpu.jit(layout.__file__, inline="code")
def _level(v: Any) -> Any:
    """Nearest level."""
    q = _T[0]
    q = q if v < _MIDDLES[0] else _T[1]
    q = q if v < _MIDDLES[1] else _T[2]
    q = q if v < _MIDDLES[2] else _T[3]
    q = q if v < _MIDDLES[3] else _T[4]
    q = q if v < _MIDDLES[4] else _T[5]
    q = q if v < _MIDDLES[5] else _T[6]
    q = q if v < _MIDDLES[6] else _T[7]
    q = q if v < _MIDDLES[7] else _T[8]
    q = q if v < _MIDDLES[8] else _T[9]
    q = q if v < _MIDDLES[9] else _T[10]
    q = q if v < _MIDDLES[10] else _T[11]
    q = q if v < _MIDDLES[11] else _T[12]
    q = q if v < _MIDDLES[12] else _T[13]
    q = q if v < _MIDDLES[13] else _T[14]
    return q if v < _MIDDLES[14] else _T[15]


@cpu.jit(layout.__file__, inline="code")
def nearest_code(v: Any) -> Any:
    """Number of the nearest level, int32."""
    code = int32(0)
    for middle in _MIDDLES:
        code = int32(code + (int32(0) if v < middle else int32(1)))
    return code


@cpu.jit(lanes.__file__, layout.__file__)
def _sums(x: Any, w: Any, inverse: Any, mixed: Any, square: Any) -> None:
    """Weighted sums of the levels' products with the values, and of their squares."""
    mixed[:], square[:] = float32(0), float32(0)
    for i in range(x.shape[0]):
        row, weights = x[i], w[i]
        for lane in range(mixed.size):
            level = _level(float32(inverse[lane] * row[lane]))
            weighed = float32(weights[lane] * level)
            mixed[lane] = float32(mixed[lane] + float32(weighed * row[lane]))
            square[lane] = float32(square[lane] + float32(weighed * level))


@cpu.jit(lanes.__file__, layout.__file__)
def table(x: Any, w: Any, scale: Any, scratch: Any) -> None:
    """Scale of every lane.

    Parameters
    ----------
    x, w : ndarray
        float32 ``(elements, lanes)``: values and weights.
    scale : ndarray
        float32 ``(lanes,)``; overwritten.
    scratch : ndarray
        float32 ``(5, lanes)``.
    """
    extreme, best, inverse, mixed, square = scratch[0], scratch[1], scratch[2], scratch[3], scratch[4]
    first_extreme(x, extreme)
    for lane in range(extreme.size):
        inverse[lane] = float32(float32(1) / float32(float32(-extreme[lane]) / _T[0]))
    _sums(x, w, inverse, mixed, square)
    for lane in range(extreme.size):
        ratio = float32(mixed[lane] / square[lane])
        scale[lane] = ratio if square[lane] > 0 else float32(0)
        best[lane] = float32(scale[lane] * mixed[lane])
    for k in range(-7, 8):
        reach = float32(float32(k) + _T[0])
        for lane in range(extreme.size):
            inverse[lane] = float32(reach / extreme[lane])
        _sums(x, w, inverse, mixed, square)
        for lane in range(extreme.size):
            gain = float32(mixed[lane] * mixed[lane])
            won = (square[lane] > 0) & (gain > float32(best[lane] * square[lane]))
            ratio = float32(mixed[lane] / square[lane])
            scale[lane] = ratio if won else scale[lane]
            best[lane] = float32(ratio * mixed[lane]) if won else best[lane]
    for lane in range(extreme.size):
        scale[lane] = float32(0) if abs(extreme[lane]) < EPSILON else scale[lane]
