"""The numbers that each weight of a layer can become, whatever the grid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qformats import Grid, GridParams
from qformats.numbers import expand_blocks

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Levels"]


@dataclass(frozen=True, eq=False)
class Levels:
    """``scale * (code - zero) + minimum``, or ``scale * table[code]``, for every element.

    Attributes
    ----------
    scale : Tensor
        float32, ``(N, K)``.
    zero : Tensor or None
        float32, ``(N, K)`` or ``(1, 1)``; ``None`` with a table.
    minimum : Tensor or None
        float32, ``(N, K)``.
    table : Tensor or None
        float32, ascending.
    first, last : int
        Codes that may be used.
    """

    scale: Tensor
    zero: Tensor | None
    minimum: Tensor | None
    table: Tensor | None
    first: int
    last: int

    @classmethod
    def of(cls, grid: Grid, params: GridParams, weight: Tensor) -> Levels:
        """Levels of a weight whose parameters are chosen.

        Every grid has a canonical form, and every canonical form is affine or a table: so this serves all of them.
        """
        import torch

        blank = torch.zeros(weight.shape, dtype=torch.uint8, device=weight.device)
        form = grid.quantized(blank, params)

        def spread(values: Tensor) -> Tensor:
            return expand_blocks(values.float(), form.shape, form.block_size)

        zero: Tensor | None
        if form.codebook is not None:
            zero = None
        elif isinstance(form.zero_point, int | float):
            zero = torch.full((1, 1), float(form.zero_point), device=weight.device)
        else:
            zero = spread(form.zero_point)
        minimum = None if form.minimum is None else spread(form.minimum)
        table = None if form.codebook is None else form.codebook.float()
        first = int(getattr(grid, "low", 0))
        return cls(spread(form.scale), zero, minimum, table, first, grid.levels - 1)

    def columns(self, chosen: Tensor | slice) -> Levels:
        """Levels of some columns, or of all of them in another order."""

        def take(values: Tensor | None) -> Tensor | None:
            return values if values is None or values.shape[1] == 1 else values[:, chosen]

        return replace(self, scale=self.scale[:, chosen], zero=take(self.zero), minimum=take(self.minimum))

    def contiguous(self) -> Levels:
        """The same with every row in one piece."""

        def whole(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.contiguous()

        return replace(
            self, scale=self.scale.contiguous(), zero=whole(self.zero), minimum=whole(self.minimum)
        )

    def codes(self, values: Tensor) -> Tensor:
        """Codes of the nearest levels, float32, shape of `values`."""
        import torch

        if self.minimum is not None:
            values = values - self.minimum
        steps = (values / self.scale).masked_fill_(self.scale == 0, 0.0)
        if self.table is not None:
            middles = (self.table[1:] + self.table[:-1]) / 2
            return torch.bucketize(steps, middles).float()
        assert self.zero is not None
        return steps.round_().add_(self.zero).clamp_(self.first, self.last)

    def units(self, codes: Tensor) -> Tensor:
        """Levels of codes in units of the scale, without the minimum."""
        if self.table is not None:
            return self.table[codes.long()]
        assert self.zero is not None
        return codes - self.zero

    def values(self, codes: Tensor) -> Tensor:
        """Values of codes, float32: what the canonical tensor gives."""
        value = self.scale * self.units(codes)
        return value if self.minimum is None else value + self.minimum
