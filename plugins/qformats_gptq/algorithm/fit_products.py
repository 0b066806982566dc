"""Parameters before anything is rounded, where scales are products of two stored numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qformats import Grid, GridParams
from qformats_gptq.algorithm.blocks import Blocks, chosen, negated, scaled, signed
from qformats_gptq.algorithm.levels import Levels
from qformats_gptq.algorithm.products import merged_products, weighed_products

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["fit_products"]

_STEPS = 16
"""Ranges that each block tries by itself."""
_MOST, _LEAST = 1.05, 0.4
"""The first and the last of them, as shares of what the format's own fit gives."""
_TURNS = 3
"""How often products are fitted to the codes that the last ones give."""


def fit_products(
    grid: Grid, blocks: Blocks, weight: Tensor, importance: Tensor, whole: GridParams
) -> GridParams:
    """Scales (and minima) of every block by itself, then the products nearest in cost, then those of their codes.

    Parameters
    ----------
    grid : Grid
        With nested scales.
    blocks : Blocks
        The weight, by blocks.
    weight : Tensor
        float32, ``(N, K)``.
    importance : Tensor
        float32, ``(K,)``: what a squared error in each column costs.
    whole : GridParams
        Where to begin: the format's own fit.
    """
    free, least = whole, blocks.cost(whole)
    starts = [whole]
    if signed(grid, weight):
        starts.append(negated(whole))
    for start in starts:
        for step in range(_STEPS):
            trial = scaled(start, _MOST - (_MOST - _LEAST) * step / (_STEPS - 1))
            for _ in range(2):
                trial = blocks.fitted(trial)
                cost = blocks.cost(trial)
                better = cost < least
                free = chosen(better, trial, free)
                least = cost.minimum(least)
    found, cost = whole, _of_groups(grid, blocks, whole)
    trial = whole
    levels = Levels.of(grid, free, weight)
    for turn in range(_TURNS):
        units = levels.units(levels.codes(weight))
        trial = weighed_products(grid, trial, weight, units, importance, trials=turn == 0)
        new = _of_groups(grid, blocks, trial)
        found = merged_products(grid, new < cost, trial, found)
        cost = new.minimum(cost)
        levels = Levels.of(grid, trial, weight)
    return found


def _of_groups(grid: Grid, blocks: Blocks, params: GridParams) -> Tensor:
    """Cost of blocks that share an outer number, ``(N, groups)``."""
    nested = grid.nested(params)
    assert nested is not None
    return blocks.cost(params).view(*nested[0].outer.shape, -1).sum(-1)
