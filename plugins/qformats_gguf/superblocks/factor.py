"""From the scales of a block to the two numbers that each is stored as: arithmetic, complete, no rounding.

This module imports numba. Import it inside functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import float32, int8
from numpy.typing import NDArray

from qformats.kernels import cpu

__all__ = ["factor"]


@cpu.jit()
def _factor(values: Any, low: Any, high: Any, halves: Any, wholes: Any) -> Any:
    """Fill `halves` and `wholes`; give the first block that has no such numbers, or -1."""
    for number in range(values.shape[0]):
        row = values[number]
        extreme, finite = float32(0), True
        for j in range(row.size):
            finite = finite and not cpu.is_infinite(row[j])
            extreme = row[j] if abs(row[j]) > abs(extreme) else extreme
        if not finite:
            return number
        if extreme == 0:
            halves[number] = 0
            wholes[number, :] = int8(0)
            continue
        found = False
        # The whole number of the largest scale, from the largest magnitude down: every one that the type has.
        for step in range(2 * max(-low, high)):
            size = max(-low, high) - step // 2
            whole = size if step % 2 == 0 else -size
            if whole < low or whole > high or size == 0:
                continue
            bits = cpu.f32_to_f16(float32(extreme / float32(whole)))
            d = cpu.f16_to_f32(bits)
            if float32(d * float32(whole)) != extreme or cpu.is_infinite(d):
                continue
            found = True
            for j in range(row.size):
                # The quotient is at most `high` in magnitude: its nearest whole number is the only candidate.
                nearest = int(np.rint(float32(row[j] / d)))
                if nearest < low or nearest > high or float32(d * float32(nearest)) != row[j]:
                    found = False
                    break
                wholes[number, j] = int8(nearest)
            if found:
                halves[number] = bits
                break
        if not found:
            return number
    return -1


def factor(
    values: NDArray[np.float32], low: int, high: int
) -> tuple[NDArray[np.uint16], NDArray[np.int8]] | None:
    """Numbers whose products are exactly these.

    Parameters
    ----------
    values : ndarray
        float32 ``(blocks, scales of a block)``.
    low, high : int
        Range of the whole numbers.

    Returns
    -------
    tuple of ndarray, or None
        Bits of a float16 for each block, and int8 of the shape of `values`; ``None`` if a block has none.
    """
    halves, wholes = np.empty(len(values), np.uint16), np.empty(values.shape, np.int8)
    source = np.ascontiguousarray(values, np.float32)
    if int(_factor(cpu.for_reading(source), low, high, halves, wholes)) >= 0:
        return None
    return halves, wholes
