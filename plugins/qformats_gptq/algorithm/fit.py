"""Parameters of every block before anything is rounded: a search over clipped ranges."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qformats import Grid, GridParams
from qformats_gptq.algorithm.levels import Levels

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
    blocks = _Blocks.of(grid, weight, importance)
    starts = [whole]
    if _signed(grid, weight):
        starts.append(_negated(grid.fit(-weight)))
    best, least = whole, blocks.cost(whole)
    for start in starts:
        for step in range(_STEPS):
            trial = grid.project(_scaled(start, 1 - (1 - _LEAST) * step / (_STEPS - 1)))
            cost = blocks.cost(trial)
            better = cost < least
            best = _choose(better, trial, best)
            least = cost.minimum(least)
    # Chosen block by block; if parameters depend on each other, all of them are then stored again together.
    return grid.project(best)


def _signed(grid: Grid, weight: Tensor) -> bool:
    """Whether the format itself stores negative scales, so that either end of the levels may be the longer one."""
    _, params = grid.reference(weight[: min(64, weight.shape[0])])
    return params.minimum is None and bool((params.scale < 0).any())


def _negated(params: GridParams) -> GridParams:
    return replace(params, scale=-params.scale)


def _scaled(params: GridParams, factor: float) -> GridParams:
    minimum = None if params.minimum is None else params.minimum.float() * factor
    return GridParams(params.scale.float() * factor, params.zero_point, minimum)


def _choose(better: Tensor, yes: GridParams, no: GridParams) -> GridParams:
    def pick(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return None if a is None or b is None else a.where(better, b)

    scale = yes.scale.where(better, no.scale)
    return GridParams(scale, pick(yes.zero_point, no.zero_point), pick(yes.minimum, no.minimum))


@dataclass(frozen=True, eq=False)
class _Blocks:
    """A weight by blocks, to measure what parameters cost.

    Attributes
    ----------
    grid : Grid
        What can be represented.
    blank : Tensor
        Codes of the weight's shape.
    values, importance : Tensor
        float32, ``(rows, blocks per row, columns of a block)``; one row of all blocks where they straddle rows.
        What a short block lacks costs nothing.
    """

    grid: Grid
    blank: Tensor
    values: Tensor
    importance: Tensor

    @classmethod
    def of(cls, grid: Grid, weight: Tensor, importance: Tensor) -> _Blocks:
        """Cut a weight and the importance of its columns into blocks."""
        import torch

        rows, width = grid.block_of(weight)
        parts = []
        for values in (weight, importance.expand_as(weight) if rows == 0 else importance[None]):
            flat = values.reshape(1, -1) if rows == 0 else values
            padded = torch.nn.functional.pad(flat, (0, -flat.shape[1] % width))
            parts.append(padded.reshape(flat.shape[0], -1, width))
        blank = torch.zeros(weight.shape, dtype=torch.uint8, device=weight.device)
        return cls(grid, blank, parts[0], parts[1])

    def cost(self, params: GridParams) -> Tensor:
        """Weighted squared error of every block, shape of the scales."""
        form = self.grid.quantized(self.blank, params)
        shape = (*self.values.shape[:2], 1)
        zero, minimum = form.zero_point, form.minimum
        levels = Levels(
            form.scale.float().view(shape),
            form.scale.new_full((1, 1), zero).float()
            if isinstance(zero, int | float)
            else zero.float().view(shape),
            None if minimum is None else minimum.float().view(shape),
            None if form.codebook is None else form.codebook.float(),
            int(getattr(self.grid, "low", 0)),
            self.grid.levels - 1,
        )
        error = levels.values(levels.codes(self.values)).sub_(self.values)
        return error.square_().mul_(self.importance).sum(-1).view(params.scale.shape)
