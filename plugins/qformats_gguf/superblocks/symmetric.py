"""The search for a scale around zero: hundreds of sub-blocks side by side.

Source: llama.cpp:ggml/src/ggml-quants.c (``make_qx_quants`` with rmse_type 1, ``make_q3_quants``). This module imports
numba. Import it inside functions.
"""

from __future__ import annotations

from typing import Any

from numpy import float32

from qformats.kernels import cpu
from qformats_gguf.superblocks import lanes
from qformats_gguf.superblocks.lanes import EPSILON, clamped, first_extreme

__all__ = ["refined", "symmetric"]


@cpu.jit(inline="code")
def _level(value: Any, inverse: Any, half: Any) -> Any:
    return float32(clamped(float32(inverse * value), -half, half - 1))


@cpu.jit(lanes.__file__)
def _sums(x: Any, w: Any, inverse: Any, half: Any, mixed: Any, square: Any) -> None:
    """Weighted sums of the levels' products with the values, and of their squares."""
    mixed[:], square[:] = float32(0), float32(0)
    for i in range(0, x.shape[0], 4):
        x0, x1, x2, x3 = x[i], x[i + 1], x[i + 2], x[i + 3]
        w0, w1, w2, w3 = w[i], w[i + 1], w[i + 2], w[i + 3]
        for lane in range(mixed.size):
            a, b, inv = mixed[lane], square[lane], inverse[lane]
            level = _level(x0[lane], inv, half)
            a = float32(a + float32(float32(w0[lane] * x0[lane]) * level))
            b = float32(b + float32(float32(w0[lane] * level) * level))
            level = _level(x1[lane], inv, half)
            a = float32(a + float32(float32(w1[lane] * x1[lane]) * level))
            b = float32(b + float32(float32(w1[lane] * level) * level))
            level = _level(x2[lane], inv, half)
            a = float32(a + float32(float32(w2[lane] * x2[lane]) * level))
            b = float32(b + float32(float32(w2[lane] * level) * level))
            level = _level(x3[lane], inv, half)
            mixed[lane] = float32(a + float32(float32(w3[lane] * x3[lane]) * level))
            square[lane] = float32(b + float32(float32(w3[lane] * level) * level))


@cpu.jit(lanes.__file__)
def symmetric(x: Any, w: Any, half: Any, found: Any, scratch: Any) -> None:
    """Scale and codes of every lane; codes ``-half`` to ``half - 1``.

    Parameters
    ----------
    x, w : ndarray
        float32 ``(elements, lanes)``: values and weights.
    half : int
        Half the number of codes.
    found : ndarray
        float32 ``(3, lanes)``: scale; the inverse scale that chose the codes; 0 where all codes, counted from
        ``-half``, are 0 because the values are too small to count. Overwritten.
    scratch : ndarray
        float32 ``(5, lanes)``.
    """
    scale, chosen, live = found[0], found[1], found[2]
    extreme, best, inverse, mixed, square = scratch[0], scratch[1], scratch[2], scratch[3], scratch[4]
    first_extreme(x, extreme)
    for lane in range(extreme.size):
        live[lane] = float32(0) if abs(extreme[lane]) < EPSILON else float32(1)
        inverse[lane] = float32(float32(-half) / extreme[lane])
        chosen[lane] = inverse[lane]
    _sums(x, w, inverse, half, mixed, square)
    for lane in range(extreme.size):
        ratio = float32(mixed[lane] / square[lane])
        scale[lane] = ratio if square[lane] != 0 else float32(0)
        best[lane] = float32(scale[lane] * mixed[lane])
    for k in range(-9, 10):
        if k == 0:
            continue
        reach = float32(-float32(float32(half) + float32(float32(0.1) * float32(k))))
        for lane in range(extreme.size):
            inverse[lane] = float32(reach / extreme[lane])
        _sums(x, w, inverse, half, mixed, square)
        for lane in range(extreme.size):
            gain = float32(mixed[lane] * mixed[lane])
            won = (square[lane] > 0) & (gain > float32(best[lane] * square[lane]))
            ratio = float32(mixed[lane] / square[lane])
            chosen[lane] = inverse[lane] if won else chosen[lane]
            scale[lane] = ratio if won else scale[lane]
            best[lane] = float32(ratio * mixed[lane]) if won else best[lane]
    for lane in range(extreme.size):
        scale[lane] = float32(0) if live[lane] == 0 else scale[lane]


@cpu.jit(lanes.__file__)
def _round(x: Any, half: Any, levels: Any, mixed: Any, square: Any, moved: Any) -> None:
    """Choose each code of every lane again; tell in `moved` which lanes have a new one.

    Weights are the squares of the values.
    """
    moved[:] = float32(0)
    for i in range(x.shape[0]):
        row, level = x[i], levels[i]
        for lane in range(moved.size):
            value, old = row[lane], level[lane]
            weight = float32(value * value)
            weighed = float32(weight * value)
            rest = float32(mixed[lane] - float32(weighed * old))
            others = float32(square[lane] - float32(float32(weight * old) * old))
            new = _level(float32(float32(value * others) / rest), float32(1), half)
            above = float32(rest + float32(weighed * new))
            below = float32(others + float32(float32(weight * new) * new))
            gain = float32(float32(above * above) * square[lane])
            won = (rest > 0) & (new != old) & (below > 0)
            won = won & (gain > float32(float32(mixed[lane] * mixed[lane]) * below))
            level[lane] = new if won else old
            mixed[lane] = above if won else mixed[lane]
            square[lane] = below if won else square[lane]
            moved[lane] = float32(1) if won else moved[lane]


@cpu.jit(lanes.__file__)
def _begin(x: Any, half: Any, inverse: Any, levels: Any, mixed: Any, square: Any) -> None:
    """First codes of every lane, and the sums of :func:`_round`."""
    mixed[:], square[:] = float32(0), float32(0)
    for i in range(x.shape[0]):
        row, level = x[i], levels[i]
        for lane in range(inverse.size):
            value = row[lane]
            weight = float32(value * value)
            code = _level(value, inverse[lane], half)
            level[lane] = code
            mixed[lane] = float32(mixed[lane] + float32(float32(weight * value) * code))
            square[lane] = float32(square[lane] + float32(float32(weight * code) * code))


@cpu.jit(lanes.__file__)
def refined(x: Any, half: Any, found: Any, levels: Any, scratch: Any, few: Any, chosen: Any) -> None:
    """Scale and codes of every lane, each code chosen again while the others stay, up to five times over.

    Lanes without a new code are done, as in C. They are most after the first round: the others are moved together.

    Parameters
    ----------
    x : ndarray
        float32 ``(elements, lanes)``: values, whose squares are their weights.
    half : int
        Half the number of codes.
    found : ndarray
        float32 ``(3, lanes)``: scale, unused, and 0 where the values are too small to count; overwritten.
    levels : ndarray
        float32 ``(elements, lanes)``: codes, from ``-half``; overwritten.
    scratch : ndarray
        float32 ``(4, lanes)``.
    few : ndarray
        float32 ``((2 * elements + 3) * lanes,)``, for what is moved together.
    chosen : ndarray
        int64 ``(lanes,)``.
    """
    scale, live = found[0], found[2]
    mixed, square, moved, inverse = scratch[0], scratch[1], scratch[2], scratch[3]
    first_extreme(x, inverse)
    for lane in range(inverse.size):
        live[lane] = float32(0) if abs(inverse[lane]) < EPSILON else float32(1)
        inverse[lane] = float32(float32(-half) / inverse[lane])
    _begin(x, half, inverse, levels, mixed, square)
    _round(x, half, levels, mixed, square, moved)
    elements = x.shape[0]
    for _ in range(4):
        count = 0
        for lane in range(moved.size):
            chosen[count] = lane
            count += moved[lane] != 0
        if count == 0:
            break
        # Vectors are filled up with lanes of zeros, in which nothing can win.
        width = min(moved.size, (count + 15) // 16 * 16)
        size = elements * width
        values, codes = few[:size].reshape(elements, width), few[size : 2 * size].reshape(elements, width)
        rest = few[2 * size : 2 * size + 3 * width].reshape(3, width)
        values[:, :], codes[:, :], rest[:, :] = float32(0), float32(0), float32(0)
        for k in range(count):
            lane = chosen[k]
            rest[0, k], rest[1, k] = mixed[lane], square[lane]
            for i in range(elements):
                values[i, k], codes[i, k] = x[i, lane], levels[i, lane]
        _round(values, half, codes, rest[0], rest[1], rest[2])
        moved[:] = float32(0)
        for k in range(count):
            lane = chosen[k]
            mixed[lane], square[lane], moved[lane] = rest[0, k], rest[1, k], rest[2, k]
            for i in range(elements):
                levels[i, lane] = codes[i, k]
    for lane in range(inverse.size):
        ratio = float32(mixed[lane] / square[lane])
        scale[lane] = ratio if (square[lane] > 0) & (live[lane] > 0) else float32(0)
