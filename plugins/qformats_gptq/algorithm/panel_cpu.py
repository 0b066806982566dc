"""One panel of a sweep on the processor. Importing this module imports numba."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qformats.kernels.cpu import jit

if TYPE_CHECKING:
    from torch import Tensor

    from qformats_gptq.algorithm.levels import Levels

__all__ = ["panel"]


@jit()
def _panel(
    start: int,
    weight: NDArray[np.float32],
    target: NDArray[np.float32],
    scale: NDArray[np.float32],
    zero: NDArray[np.float32],
    minimum: NDArray[np.float32],
    table: NDArray[np.float32],
    feedback: NDArray[np.float32],
    codes: NDArray[np.float32],
    errors: NDArray[np.float32],
    first: np.float32,
    last: np.float32,
) -> None:
    """code[i] = nearest(target[i]); target[j > i] += (error[i] - old error[i]) * feedback[i, j]."""
    rows, width = target.shape
    for row in range(rows):
        line = target[row]
        for i in range(width):
            column = start + i
            value = line[i]
            step = scale[row, column]
            low = np.float32(0.0)
            if minimum.size:
                low = minimum[row, column]
                value = np.float32(value - low)
            steps = np.float32(0.0)
            if step != 0:
                steps = np.float32(value / step)
            if table.size:
                place = 0
                while place < table.size - 1 and steps > np.float32(
                    (table[place] + table[place + 1]) / np.float32(2)
                ):
                    place += 1
                code = np.float32(place)
                unit = table[place]
            else:
                middle = zero[0, 0] if zero.size == 1 else zero[row, column]
                code = min(max(np.float32(np.rint(steps) + middle), first), last)
                unit = np.float32(code - middle)
            level = np.float32(step * unit)
            if minimum.size:
                level = np.float32(level + low)
            error = np.float32(weight[row, column] - level)
            change = np.float32(error - errors[row, column])
            codes[row, column] = code
            errors[row, column] = error
            if change != 0:
                asked = feedback[i]
                for j in range(i + 1, width):
                    line[j] += change * asked[j]


def panel(
    start: int,
    weight: Tensor,
    target: Tensor,
    levels: Levels,
    feedback: Tensor,
    codes: Tensor,
    errors: Tensor,
) -> None:
    """Columns from `start` on, as many as `target` has; the other arguments are of all columns, contiguous."""
    none = np.zeros((0, 0), np.float32)
    zero, minimum, table = levels.zero, levels.minimum, levels.table
    _panel(
        start,
        weight.numpy(),
        target.numpy(),
        levels.scale.numpy(),
        none if zero is None else zero.numpy(),
        none if minimum is None else minimum.numpy(),
        np.zeros(0, np.float32) if table is None else table.numpy(),
        feedback.numpy(),
        codes.numpy(),
        errors.numpy(),
        np.float32(levels.first),
        np.float32(levels.last),
    )
