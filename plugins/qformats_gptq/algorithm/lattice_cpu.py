"""Scales of least loss among those that can be stored as products. Importing this module imports numba.

The loss of blocks that share an outer number is a quadratic form of their scales (and minima) once codes are chosen:
with ``p = outer * inner``, a change ``d`` of ``p`` changes it by ``dᵀ A d - 2 gᵀ d``. Inner numbers are few, outer ones
nearly free: outer ones are tried, inner ones rounded and then moved one block at a time as long as that helps.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy import float32, float64
from numpy.typing import NDArray

from qformats.kernels import cpu

__all__ = ["choose"]

_FLOATS = ("f32", "f16", "bf16")
_SHARES = np.array((0.82, 0.88, 0.94, 0.97, 1.0, 1.04, 1.1), np.float64)
"""Outer numbers that are tried, as shares of the one with which the largest scale gets the last step."""
_SHARES_OF_MINIMA = np.array((0.9, 0.97, 1.0, 1.05), np.float64)
_PASSES = 6
"""Passes over the blocks at most; the second one seldom changes anything."""
_SMALL = 1e-30


@cpu.jit(inline="code")
def _stored(value: Any, kind: Any) -> Any:
    """Nearest number of the dtype of outer numbers."""
    narrow = float32(value)
    if kind == 1:
        return float64(cpu.f16_to_f32(cpu.f32_to_f16(narrow)))
    if kind == 2:
        return float64(cpu.bf16_to_f32(cpu.f32_to_bf16(narrow)))
    return float64(narrow)


@cpu.jit()
def _place(steps: Any, value: Any) -> Any:
    """Index of the nearest step."""
    low, high = 0, steps.size - 1
    while high - low > 1:
        middle = (low + high) // 2
        if steps[middle] <= value:
            low = middle
        else:
            high = middle
    return high if value - steps[low] > steps[high] - value else low


@cpu.jit()
def _move(matrix: Any, pull: Any, at: Any, change: Any) -> None:
    """Take a change of a parameter off what is still asked of all."""
    for k in range(pull.size):
        pull[k] -= float64(matrix[at, k]) * change


@cpu.jit()
def _inner_alone(matrix: Any, outer: Any, steps: Any, inner: Any, pull: Any) -> Any:
    """One pass over the blocks: each the step of least loss while all others stay. Whether anything changed."""
    changed = False
    if outer[0] == 0:
        return changed
    for j in range(inner.size):
        curve = float64(matrix[j, j])
        if curve <= _SMALL:
            continue
        now = outer[0] * inner[j]
        found = steps[_place(steps, (now + pull[j] / curve) / outer[0])]
        if found != inner[j]:
            change = outer[0] * (found - inner[j])
            if change * (change * curve - 2 * pull[j]) < 0:
                _move(matrix, pull, j, change)
                inner[j] = found
                changed = True
    return changed


@cpu.jit()
def _inner_pairs(matrix: Any, outer: Any, steps: Any, low_steps: Any, inner: Any, pull: Any) -> Any:
    """The same where blocks have a minimum: scale and minimum of a block together."""
    changed = False
    blocks = inner.size // 2
    for j in range(blocks):
        i = blocks + j
        a, c, x = float64(matrix[j, j]), float64(matrix[i, i]), float64(matrix[j, i])
        if c <= _SMALL:
            continue
        scale, low = outer[0] * inner[j], outer[1] * inner[i]
        determinant = a * c - x * x
        toward = 0.0
        if determinant > 1e-6 * a * c:
            toward = (pull[j] * c - pull[i] * x) / determinant
        place = 0
        if outer[0] != 0 and a > _SMALL:
            place = _place(steps, (scale + toward) / outer[0])
        best, best_scale, best_low = -1e-9 * (abs(a * scale * scale) + abs(c * low * low)), inner[j], inner[i]
        for shift in range(-2, 3):
            # The steps around the best one, and the one that it has.
            tried = inner[j]
            if shift < 2:
                if outer[0] == 0 or a <= _SMALL or place + shift < 0 or place + shift >= steps.size:
                    continue
                tried = steps[place + shift]
            change = outer[0] * (tried - inner[j])
            shifted = low + (pull[i] - x * change) / c
            tried_low = inner[i]
            if outer[1] != 0:
                tried_low = low_steps[_place(low_steps, shifted / outer[1])]
            moved = outer[1] * (tried_low - inner[i])
            gain = a * change * change + 2 * x * change * moved + c * moved * moved
            gain -= 2 * (pull[j] * change + pull[i] * moved)
            if gain < best:
                best, best_scale, best_low = gain, tried, tried_low
        if best_scale != inner[j] or best_low != inner[i]:
            _move(matrix, pull, j, outer[0] * (best_scale - inner[j]))
            _move(matrix, pull, i, outer[1] * (best_low - inner[i]))
            inner[j], inner[i] = best_scale, best_low
            changed = True
    return changed


@cpu.jit()
def _outers(matrix: Any, kind: Any, outer: Any, inner: Any, pull: Any) -> Any:
    """Outer numbers of least loss for these inner ones; whether they changed."""
    count = outer.size
    blocks = inner.size // count
    asked, curve = np.zeros(2), np.zeros((2, 2))
    for j in range(inner.size):
        p = j // blocks
        asked[p] += inner[j] * pull[j]
        for k in range(inner.size):
            curve[p, k // blocks] += inner[j] * inner[k] * float64(matrix[j, k])
    changed = False
    determinant = curve[0, 0] * curve[1, 1] - curve[0, 1] * curve[1, 0]
    both = count == 2 and determinant > 1e-6 * curve[0, 0] * curve[1, 1]
    for p in range(count):
        if curve[p, p] <= _SMALL:
            continue
        change = asked[p] / curve[p, p]
        if both and p == 0:
            change = (asked[0] * curve[1, 1] - asked[1] * curve[0, 1]) / determinant
        new = _stored(outer[p] + change, kind)
        change = new - outer[p]
        # By itself the first of two need not gain: the second follows.
        worth = change * (change * curve[p, p] - 2 * asked[p]) < 0 or (both and p == 0)
        if change == 0 or not np.isfinite(new) or new == 0 or not worth:
            continue
        other = 1 - p
        if count == 2:
            asked[other] -= curve[other, p] * change
        asked[p] -= curve[p, p] * change
        for j in range(p * blocks, (p + 1) * blocks):
            if inner[j] != 0:
                _move(matrix, pull, j, inner[j] * change)
        outer[p] = new
        changed = True
    return changed


@cpu.jit()
def _polish(
    matrix: Any, kind: Any, steps: Any, low_steps: Any, outer: Any, inner: Any, pull: Any, passes: Any
) -> None:
    """Inner and outer numbers in turn, until nothing changes."""
    for _ in range(passes):
        if outer.size == 1:
            changed = _inner_alone(matrix, outer, steps, inner, pull)
        else:
            changed = _inner_pairs(matrix, outer, steps, low_steps, inner, pull)
        changed |= _outers(matrix, kind, outer, inner, pull)
        if not changed:
            break


@cpu.jit()
def _solve(matrix: Any, asked: Any, found: Any, factor: Any) -> None:
    """``found = matrix⁻¹ asked``, with a little more on the diagonal; where nothing depends on a parameter, 0."""
    size = asked.size
    for j in range(size):
        for k in range(j + 1):
            total: Any = float64(matrix[j, k])
            if j == k:
                total = total * 1.0001 if total > _SMALL else 1.0
            elif matrix[j, j] <= _SMALL or matrix[k, k] <= _SMALL:
                total = 0.0
            for i in range(k):
                total -= factor[j, i] * factor[k, i]
            if j == k:
                factor[j, j] = np.sqrt(max(total, _SMALL))
            else:
                factor[j, k] = total / factor[k, k]
    for j in range(size):
        total = asked[j] if matrix[j, j] > _SMALL else 0.0
        for i in range(j):
            total -= factor[j, i] * found[i]
        found[j] = total / factor[j, j]
    for j in range(size - 1, -1, -1):
        total = found[j]
        for i in range(j + 1, size):
            total -= factor[i, j] * found[i]
        found[j] = total / factor[j, j]


@cpu.jit()
def _largest(values: Any, steps: Any, end: Any) -> Any:
    """Outer number with which the largest value that has the sign of an end gets that end; 0 if there is none."""
    reach = steps[steps.size - 1] if end == 0 else steps[0]
    if reach == 0:
        return 0.0
    extreme = 0.0
    for value in values:
        if abs(value) > abs(extreme):
            extreme = value
    return extreme / reach


@cpu.jit()
def _choose(
    matrices: Any,
    pulls: Any,
    kind: Any,
    steps: Any,
    low_steps: Any,
    trials: Any,
    outers: Any,
    inners: Any,
    gains: Any,
) -> None:
    rows, size = inners.shape
    count = outers.shape[1]
    blocks = size // count
    wanted, factor, extended = np.empty(size), np.zeros((size, size)), np.empty(size)
    outer, inner, pull = np.empty(count), np.empty(size), np.empty(size)
    best_outer, best_inner = np.empty(count), np.empty(size)
    start = np.empty(size)
    for row in range(rows):
        matrix = matrices[row]
        for j in range(size):
            start[j] = float64(outers[row, j // blocks]) * float64(inners[row, j])
            pull[j], inner[j] = float64(pulls[row, j]), float64(inners[row, j])
        for p in range(count):
            outer[p] = float64(outers[row, p])
        _polish(matrix, kind, steps, low_steps, outer, inner, pull, _PASSES)
        best_outer[:], best_inner[:] = outer, inner
        least = 0.0
        for j in range(size):
            change = outer[j // blocks] * inner[j] - start[j]
            least -= change * (float64(pulls[row, j]) + pull[j])
        if trials:
            for j in range(size):
                extended[j] = float64(pulls[row, j])
            _solve(matrix, extended, wanted, factor)
            for j in range(size):
                wanted[j] += start[j]
            if count == 2:
                for j in range(blocks, size):
                    # Minima whose sign cannot be stored become 0, and their scales what is best without.
                    if (
                        wanted[j] * (outers[row, 1] if outers[row, 1] != 0 else -1.0) < 0
                        and low_steps[0] == 0
                    ):
                        wanted[j] = 0.0
            for end in range(2):
                first = _largest(wanted[:blocks], steps, end)
                if first == 0:
                    continue
                for share in _SHARES:
                    for other in _SHARES_OF_MINIMA[: 4 if count == 2 else 1]:
                        outer[0] = _stored(first * share, kind)
                        if count == 2:
                            outer[1] = _stored(_largest(wanted[blocks:], low_steps, 0) * other, kind)
                        if outer[0] == 0 or not np.isfinite(outer[0]) or not np.isfinite(outer[count - 1]):
                            continue
                        for j in range(size):
                            pull[j] = float64(pulls[row, j])
                        for j in range(size):
                            own = outer[j // blocks]
                            inner[j] = 0.0
                            if own != 0:
                                if j < blocks:
                                    inner[j] = steps[_place(steps, wanted[j] / own)]
                                else:
                                    inner[j] = low_steps[_place(low_steps, wanted[j] / own)]
                            _move(matrix, pull, j, own * inner[j] - start[j])
                        _polish(matrix, kind, steps, low_steps, outer, inner, pull, 2)
                        loss = 0.0
                        for j in range(size):
                            change = outer[j // blocks] * inner[j] - start[j]
                            loss -= change * (float64(pulls[row, j]) + pull[j])
                        if loss < least:
                            least = loss
                            best_outer[:], best_inner[:] = outer, inner
            for j in range(size):
                pull[j] = float64(pulls[row, j])
            for j in range(size):
                _move(matrix, pull, j, best_outer[j // blocks] * best_inner[j] - start[j])
            _polish(matrix, kind, steps, low_steps, best_outer, best_inner, pull, _PASSES)
            least = 0.0
            for j in range(size):
                change = best_outer[j // blocks] * best_inner[j] - start[j]
                least -= change * (float64(pulls[row, j]) + pull[j])
        gains[row] = -least
        # Rounding may make an equal out of a gain: then all stays as it was.
        if least < 0:
            for p in range(count):
                outers[row, p] = float32(best_outer[p])
            for j in range(size):
                inners[row, j] = float32(best_inner[j])


def choose(
    matrices: NDArray[np.float32],
    pulls: NDArray[np.float32],
    dtype: str,
    steps: tuple[NDArray[np.float64], NDArray[np.float64]],
    outers: NDArray[np.float32],
    inners: NDArray[np.float32],
    *,
    trials: bool,
    threads: int = 1,
) -> NDArray[np.float64]:
    """Improve products.

    Parameters
    ----------
    matrices : ndarray
        float32 ``(rows, P, P)``, symmetric: curvature of the loss in the products of a row, scales first, then minima.
    pulls : ndarray
        float32 ``(rows, P)``: half of how much the loss falls with each.
    dtype : str
        Of stored outer numbers.
    steps : tuple of ndarray
        float64, ascending: what inner numbers can be, of scales and of minima.
    outers : ndarray
        float32 ``(rows, 1)``, or ``(rows, 2)`` with minima; replaced.
    inners : ndarray
        float32 ``(rows, P)``; replaced.
    trials : bool
        Whether to try other outer numbers than what those given lead to.
    threads : int
        How many to use.

    Returns
    -------
    ndarray
        float64 ``(rows,)``: by how much the loss fell; 0 where nothing changed.
    """
    gains = np.zeros(len(inners))
    kind = _FLOATS.index(dtype)

    def part(start: int, stop: int) -> None:
        inside = slice(start, stop)
        _choose(
            *(matrices[inside], pulls[inside], kind, *steps, trials),
            *(outers[inside], inners[inside], gains[inside]),
        )

    size = max(64, -(-len(inners) // max(1, threads)))
    starts = range(0, len(inners), size)
    if len(starts) < 2:
        part(0, len(inners))
    else:
        with ThreadPoolExecutor(len(starts)) as pool:
            list(pool.map(lambda start: part(start, start + size), starts))
    return gains
