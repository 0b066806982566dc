"""Parameters of every block before anything is rounded: a search over clipped ranges."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qformats import Grid, GridParams
from qformats_gptq.algorithm.blocks import Blocks, chosen, negated, scaled, signed
from qformats_gptq.algorithm.fit_products import fit_products

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["fit"]

_STEPS = 16
"""Ranges that are tried."""
_LEAST = 0.4
"""Smallest of them, as a share of the whole range."""


def fit(grid: Grid, weight: Tensor, importance: Tensor, *, search: bool) -> GridParams:
    """Choose storable parameters for all blocks.

    Parameters
    ----------
    grid : Grid
        What can be represented.
    weight : Tensor
        float32, ``(N, K)``, columns in the order in which blocks hold them.
    importance : Tensor
        float32, ``(K,)``: what a squared error in each column costs.
    search : bool
        Whether to try clipped ranges; else each block's whole range is covered.
    """
    whole = grid.fit(weight)
    if not search:
        return whole
    blocks = Blocks.of(grid, weight, importance)
    if grid.nested(whole) is not None:
        return fit_products(grid, blocks, weight, importance, whole)
    starts = [whole]
    if signed(grid, weight):
        starts.append(negated(grid.fit(-weight)))
    best, least = whole, blocks.cost(whole)
    for start in starts:
        for step in range(_STEPS):
            trial = grid.project(scaled(start, 1 - (1 - _LEAST) * step / (_STEPS - 1)))
            cost = blocks.cost(trial)
            better = cost < least
            best = chosen(better, trial, best)
            least = cost.minimum(least)
    # Chosen block by block; if parameters depend on each other, all of them are then stored again together.
    return grid.project(best)
