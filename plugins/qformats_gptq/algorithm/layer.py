"""A whole layer, no more rows at a time than there should be working copies of."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from qformats import Grid, GridParams
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
    return found[0] if len(found) == 1 else _below(grid, found)


def _below(grid: Grid, parts: list[Solution]) -> Solution:
    """Solutions of rows below each other."""
    import torch

    params = _params([part.params for part in parts], grid)
    codes = torch.cat([part.quantized.codes for part in parts])
    quantized = grid.quantized(codes, params)
    order = parts[0].quantized.g_idx
    if order is not None:
        quantized = replace(quantized, g_idx=order)
    return Solution(quantized, params, sum(part.loss for part in parts), sum(part.signal for part in parts))


def _params(parts: list[GridParams], grid: Grid) -> GridParams:
    import torch

    nested = [grid.nested(part) for part in parts]
    if all(each is not None for each in nested):
        return grid.joined(
            [
                replace(
                    each[0],
                    outer=torch.cat([one.outer for one in each]),
                    inner=torch.cat([one.inner for one in each]),
                )
                for each in zip(*[each for each in nested if each is not None], strict=True)
            ]
        )

    def whole(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values)

    scale = whole("scale")
    assert scale is not None
    return GridParams(scale, whole("zero_point"), whole("minimum"))
