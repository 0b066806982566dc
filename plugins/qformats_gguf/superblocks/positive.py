"""The search for scales of scales with importances: many blocks side by side.

Source: llama.cpp:ggml/src/ggml-quants.c (``make_qp_quants``). This module imports numba. Import it inside functions.
"""

from __future__ import annotations

from typing import Any

from numpy import float32, int32

from qformats.kernels import cpu
from qformats_gguf.superblocks import lanes
from qformats_gguf.superblocks.lanes import EPSILON, nearest

__all__ = ["positive"]


@cpu.jit(lanes.__file__)
def positive(x: Any, w: Any, top: Any, scale: Any, codes: Any) -> None:
    """Non-negative numbers as codes 0 to `top` times a scale per block.

    Parameters
    ----------
    x, w : ndarray
        float32 ``(numbers of a block, blocks)``: numbers and their weights.
    top : int
        Largest code.
    scale : ndarray
        float32 ``(blocks,)``; overwritten.
    codes : ndarray
        int32 ``(numbers of a block, blocks)``; overwritten.
    """
    count, blocks = x.shape
    for b in range(blocks):
        largest = float32(0)
        for i in range(count):
            largest = max(largest, x[i, b])
        scale[b] = float32(0)
        if largest < EPSILON:
            for i in range(count):
                codes[i, b] = 0
            continue
        inverse = float32(float32(top) / largest)
        step = float32(float32(1) / inverse)
        best = float32(0)
        for i in range(count):
            code = nearest(float32(inverse * x[i, b]))
            codes[i, b] = code
            miss = float32(x[i, b] - float32(step * float32(code)))
            best = float32(best + float32(float32(w[i, b] * miss) * miss))
        for k in range(-4, 5):
            if k == 0:
                continue
            trial = float32(float32(float32(float32(0.1) * float32(k)) + float32(top)) / largest)
            step = float32(float32(1) / trial)
            error = float32(0)
            for i in range(count):
                code = min(int32(top), nearest(float32(trial * x[i, b])))
                miss = float32(x[i, b] - float32(step * float32(code)))
                error = float32(error + float32(float32(w[i, b] * miss) * miss))
            if error < best:
                best, inverse = error, trial
        above, below = float32(0), float32(0)
        for i in range(count):
            code = min(int32(top), nearest(float32(inverse * x[i, b])))
            codes[i, b] = code
            level = float32(code)
            weighed = float32(w[i, b] * x[i, b])
            above = float32(above + float32(weighed * level))
            below = float32(below + float32(float32(w[i, b] * level) * level))
        for _ in range(5):
            changed = False
            for i in range(count):
                weight, value, level = w[i, b], x[i, b], float32(codes[i, b])
                weighed = float32(weight * value)
                rest = float32(above - float32(weighed * level))
                others = float32(below - float32(float32(weight * level) * level))
                if rest > 0 and others > 0:
                    code = min(int32(top), nearest(float32(float32(value * others) / rest)))
                    if code != codes[i, b]:
                        level = float32(code)
                        rest = float32(rest + float32(weighed * level))
                        others = float32(others + float32(float32(weight * level) * level))
                        if float32(float32(rest * rest) * below) > float32(float32(above * above) * others):
                            codes[i, b] = code
                            above, below = rest, others
                            changed = True
            if not changed:
                break
        scale[b] = float32(above / below) if below > 0 else float32(0)
