"""The search for a scale and a minimum: hundreds of sub-blocks side by side.

Source: llama.cpp:ggml/src/ggml-quants.c (``make_qkx2_quants``, ``make_qkx3_quants``, the same arithmetic). This module
imports numba. Import it inside functions.
"""

from __future__ import annotations

from typing import Any

from numpy import float32

from qformats.kernels import cpu
from qformats_gguf.superblocks import lanes
from qformats_gguf.superblocks.lanes import clamped

__all__ = ["affine"]


@cpu.jit(inline="code")
def _level(value: Any, inverse: Any, low: Any, top: Any) -> Any:
    return float32(clamped(float32(inverse * float32(value - low)), 0, top))


@cpu.jit(inline="code")
def _miss(value: Any, weight: Any, scale: Any, low: Any, level: Any, absolute: Any) -> Any:
    miss = float32(float32(float32(scale * level) + low) - value)
    return float32(weight * (abs(miss) if absolute else float32(miss * miss)))


@cpu.jit(lanes.__file__)
def _sums(x: Any, w: Any, inverse: Any, low: Any, top: Any, flat: Any, square: Any, mixed: Any) -> None:
    """Weighted sums of the levels, of their squares, and of their products with the values."""
    flat[:], square[:], mixed[:] = float32(0), float32(0), float32(0)
    for i in range(0, x.shape[0], 4):
        x0, x1, x2, x3 = x[i], x[i + 1], x[i + 2], x[i + 3]
        w0, w1, w2, w3 = w[i], w[i + 1], w[i + 2], w[i + 3]
        for lane in range(flat.size):
            a, b, c = flat[lane], square[lane], mixed[lane]
            level = _level(x0[lane], inverse[lane], low[lane], top)
            weighed = float32(w0[lane] * level)
            a = float32(a + weighed)
            b = float32(b + float32(weighed * level))
            c = float32(c + float32(weighed * x0[lane]))
            level = _level(x1[lane], inverse[lane], low[lane], top)
            weighed = float32(w1[lane] * level)
            a = float32(a + weighed)
            b = float32(b + float32(weighed * level))
            c = float32(c + float32(weighed * x1[lane]))
            level = _level(x2[lane], inverse[lane], low[lane], top)
            weighed = float32(w2[lane] * level)
            a = float32(a + weighed)
            b = float32(b + float32(weighed * level))
            c = float32(c + float32(weighed * x2[lane]))
            level = _level(x3[lane], inverse[lane], low[lane], top)
            weighed = float32(w3[lane] * level)
            flat[lane] = float32(a + weighed)
            square[lane] = float32(b + float32(weighed * level))
            mixed[lane] = float32(c + float32(weighed * x3[lane]))


@cpu.jit(lanes.__file__)
def _error(
    x: Any,
    w: Any,
    inverse: Any,
    low: Any,
    top: Any,
    scale: Any,
    minimum: Any,
    absolute: Any,
    error: Any,
) -> None:
    """Weighted error of the levels that `inverse` and `low` choose, under a scale and a minimum."""
    error[:] = float32(0)
    for i in range(0, x.shape[0], 4):
        x0, x1, x2, x3 = x[i], x[i + 1], x[i + 2], x[i + 3]
        w0, w1, w2, w3 = w[i], w[i + 1], w[i + 2], w[i + 3]
        for lane in range(error.size):
            e, s, m = error[lane], scale[lane], minimum[lane]
            level = _level(x0[lane], inverse[lane], low[lane], top)
            e = float32(e + _miss(x0[lane], w0[lane], s, m, level, absolute))
            level = _level(x1[lane], inverse[lane], low[lane], top)
            e = float32(e + _miss(x1[lane], w1[lane], s, m, level, absolute))
            level = _level(x2[lane], inverse[lane], low[lane], top)
            e = float32(e + _miss(x2[lane], w2[lane], s, m, level, absolute))
            level = _level(x3[lane], inverse[lane], low[lane], top)
            error[lane] = float32(e + _miss(x3[lane], w3[lane], s, m, level, absolute))


@cpu.jit(lanes.__file__)
def affine(
    x: Any, w: Any, top: Any, start: Any, step: Any, steps: Any, absolute: Any, found: Any, scratch: Any
) -> None:
    """Scale, minimum and codes of every lane.

    Parameters
    ----------
    x, w : ndarray
        float32 ``(elements, lanes)``: values and weights.
    top : int
        Largest code.
    start, step : float32
        The first trial's number of steps beyond `top`, and how much each further one adds.
    steps : int
        Trials after the first.
    absolute : bool
        Whether errors count as they are and not squared.
    found : ndarray
        float32 ``(4, lanes)``: scale, minimum (0 or less), and the inverse scale and the minimum that chose the codes;
        overwritten.
    scratch : ndarray
        float32 ``(12, lanes)``.
    """
    scale, low, chosen, base = found[0], found[1], found[2], found[3]
    high, total, pull, best = scratch[0], scratch[1], scratch[2], scratch[3]
    inverse, flat, square, mixed = scratch[4], scratch[5], scratch[6], scratch[7]
    trial, minimum, error, live = scratch[8], scratch[9], scratch[10], scratch[11]
    # Lane by lane: numba compiles a copy of arrays for a second, for the text of an error that cannot happen.
    for lane in range(low.size):
        low[lane] = high[lane] = x[0, lane]
    for lane in range(low.size):
        total[lane] = w[0, lane]
        pull[lane] = float32(w[0, lane] * x[0, lane])
    for i in range(1, x.shape[0]):
        row, weights = x[i], w[i]
        for lane in range(low.size):
            value = row[lane]
            low[lane] = value if value < low[lane] else low[lane]
            high[lane] = value if value > high[lane] else high[lane]
            total[lane] = float32(total[lane] + weights[lane])
            pull[lane] = float32(pull[lane] + float32(weights[lane] * value))
    for lane in range(low.size):
        low[lane] = float32(0) if low[lane] > 0 else low[lane]
        # Lanes of one value, and that not positive, have no range to search.
        live[lane] = float32(0) if high[lane] <= low[lane] else float32(1)
        inverse[lane] = float32(float32(top) / float32(high[lane] - low[lane]))
        scale[lane] = float32(float32(1) / inverse[lane])
        chosen[lane], base[lane] = inverse[lane], low[lane]
    _error(x, w, inverse, low, top, scale, low, absolute, best)
    for k in range(steps + 1):
        reach = float32(float32(start + float32(step * float32(k))) + float32(top))
        for lane in range(low.size):
            inverse[lane] = float32(reach / float32(high[lane] - low[lane]))
        _sums(x, w, inverse, low, top, flat, square, mixed)
        for lane in range(low.size):
            determinant = float32(float32(total[lane] * square[lane]) - float32(flat[lane] * flat[lane]))
            s = float32(
                float32(float32(total[lane] * mixed[lane]) - float32(pull[lane] * flat[lane])) / determinant
            )
            m = float32(
                float32(float32(square[lane] * pull[lane]) - float32(flat[lane] * mixed[lane])) / determinant
            )
            positive = m > 0
            trial[lane] = float32(mixed[lane] / square[lane]) if positive else s
            minimum[lane] = float32(0) if positive else m
            flat[lane] = float32(1) if determinant > 0 else float32(0)
        _error(x, w, inverse, low, top, trial, minimum, absolute, error)
        for lane in range(low.size):
            won = (error[lane] < best[lane]) & (flat[lane] > 0) & (live[lane] > 0)
            best[lane] = error[lane] if won else best[lane]
            chosen[lane] = inverse[lane] if won else chosen[lane]
            base[lane] = low[lane] if won else base[lane]
            scale[lane] = trial[lane] if won else scale[lane]
            low[lane] = minimum[lane] if won else low[lane]
    for lane in range(low.size):
        dead = live[lane] == 0
        scale[lane] = float32(0) if dead else scale[lane]
        # Codes of such lanes are 0.
        chosen[lane] = float32(0) if dead else chosen[lane]
        base[lane] = float32(0) if dead else base[lane]
