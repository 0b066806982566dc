"""A weight by blocks, whatever the grid: what parameters cost, and better ones for the codes that they give."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qformats import Grid, GridParams
from qformats_gptq.algorithm.levels import Levels

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Blocks", "chosen", "negated", "scaled", "signed"]


def signed(grid: Grid, weight: Tensor) -> bool:
    """Whether the format itself stores negative scales, so that either end of the levels may be the longer one."""
    _, params = grid.reference(weight[: min(64, weight.shape[0])])
    return params.minimum is None and bool((params.scale < 0).any())


def negated(params: GridParams) -> GridParams:
    """The same with the other sign of every scale."""
    return replace(params, scale=-params.scale)


def scaled(params: GridParams, factor: float) -> GridParams:
    """The same for a range of another width."""
    minimum = None if params.minimum is None else params.minimum.float() * factor
    return GridParams(params.scale.float() * factor, params.zero_point, minimum)


def chosen(better: Tensor, yes: GridParams, no: GridParams) -> GridParams:
    """Parameters of `yes` in the blocks where they are better, of `no` elsewhere."""

    def pick(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return None if a is None or b is None else a.where(better, b)

    scale = yes.scale.where(better, no.scale)
    return GridParams(scale, pick(yes.zero_point, no.zero_point), pick(yes.minimum, no.minimum))


@dataclass(frozen=True, eq=False)
class Blocks:
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
    def of(cls, grid: Grid, weight: Tensor, importance: Tensor) -> Blocks:
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
        levels = self._levels(params)
        error = levels.values(levels.codes(self.values)).sub_(self.values)
        return error.square_().mul_(self.importance).sum(-1).view(params.scale.shape)

    def fitted(self, params: GridParams) -> GridParams:
        """Scales and minima of least cost for the codes that these give, none of them stored yet."""
        import torch

        levels = self._levels(params)
        unit = levels.units(levels.codes(self.values))
        weighed = unit * self.importance
        curve, pull = (weighed * unit).sum(-1), (weighed * self.values).sum(-1)
        if params.minimum is None:
            scale = torch.where(curve > 0, pull / curve, 0.0)
            return replace(params, scale=scale.view(params.scale.shape))
        both, flat = weighed.sum(-1), self.importance.sum(-1).expand_as(curve)
        low_pull = (self.values * self.importance).sum(-1)
        determinant = curve * flat - both.square()
        sound = determinant > 1e-6 * curve * flat
        scale = torch.where(sound, (pull * flat - low_pull * both) / determinant, 0.0)
        low = (low_pull - scale * both) / flat
        # No format stores minima above zero that has products for them.
        above = low > 0
        scale = torch.where(above, torch.where(curve > 0, pull / curve, 0.0), scale)
        low = low.masked_fill(above, 0.0)
        kept = torch.where(sound, scale, params.scale.view_as(scale))
        low = torch.where(sound, low, params.minimum.view_as(low))
        return GridParams(kept.view(params.scale.shape), params.zero_point, low.view(params.scale.shape))

    def _levels(self, params: GridParams) -> Levels:
        form = self.grid.quantized(self.blank, params)
        shape = (*self.values.shape[:2], 1)
        zero, minimum = form.zero_point, form.minimum
        return Levels(
            form.scale.float().view(shape),
            form.scale.new_full((1, 1), zero).float()
            if isinstance(zero, int | float)
            else zero.float().view(shape),
            None if minimum is None else minimum.float().view(shape),
            None if form.codebook is None else form.codebook.float(),
            int(getattr(self.grid, "low", 0)),
            self.grid.levels - 1,
        )
