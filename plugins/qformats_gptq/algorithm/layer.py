"""A whole layer, no more rows at a time than there should be working copies of."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qformats import Grid
from qformats_gptq.algorithm.hessian import Hessian
from qformats_gptq.algorithm.solve import Method, Solution, solve

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["solve_layer"]

_WEIGHTS = 1 << 22
"""Weights at a time on a processor: the dozen float32 copies of them are smaller than what else is in memory."""
_WEIGHTS_OF_DEVICES = 1 << 26
"""And on a device, which has rows for all its units only in large pieces."""


def solve_layer(
    weight: Tensor, grid: Grid, hessian: Hessian, method: Method, drift: Tensor | None = None
) -> Solution:
    """Choose parameters and codes of a weight whose inputs may differ from those of the unquantized model.

    Parameters
    ----------
    weight : Tensor
        float32, ``(N, K)``. Not modified.
    grid : Grid
        Any one.
    hessian : Hessian
        Of the layer's inputs.
    method : Method
        How.
    drift : Tensor, optional
        float32, ``(K, K)``: mean of (unquantized input - input) times input, which is made up for.
    """
    rows, columns = weight.shape
    step = rows
    # Rows need not be looked at together unless they share parameters.
    if rows and not grid.flat and grid.fit(weight[:1]).scale.ndim == 2:
        step = max(1, (_WEIGHTS if weight.device.type == "cpu" else _WEIGHTS_OF_DEVICES) // max(1, columns))
    found = []
    for start in range(0, rows, max(1, step)):
        part = weight[start : start + step]
        target = None
        if drift is not None:
            # The least squares answer without rounding: W (Y X') (X X')^-1, with Y = X + drift.
            target = part + hessian.restored(hessian.solve(hessian.ordered(part @ drift)))
        found.append(solve(part, grid, hessian, method, target))
    return found[0] if len(found) == 1 else _joined(found)


def _joined(parts: list[Solution]) -> Solution:
    """Solutions of rows below each other."""
    import torch

    first = parts[0].quantized
    fields: dict[str, Any] = {}
    for name in ("codes", "scale", "zero_point", "minimum"):
        if isinstance(getattr(first, name), torch.Tensor):
            fields[name] = torch.cat([getattr(part.quantized, name) for part in parts])
    return Solution(
        replace(first, **fields), sum(part.loss for part in parts), sum(part.signal for part in parts)
    )
