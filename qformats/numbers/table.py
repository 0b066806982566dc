"""Grids whose levels come from a table."""

from __future__ import annotations

import math
import operator
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qformats.errors import ConfigError, Described
from qformats.numbers.grid import SHRINK, Grid, GridParams
from qformats.numbers.quantized import QuantizedTensor, expand_blocks

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TableGrid"]


@dataclass(frozen=True)
class TableGrid(Grid):
    """Levels from a table: ``scale * codebook[code]``.

    Attributes
    ----------
    codebook : tuple of float
        Ascending values, 2 to 256 of them, distinct as float32; the scale maps the largest magnitude of a
        block onto the largest one here.
    block_size : int
        Columns that share a scale; 0 for the whole row.
    scale_dtype : str
        Dtype of the stored scale.

    Examples
    --------
    >>> import torch
    >>> from qformats import TableGrid
    >>> grid = TableGrid((-1.0, -0.25, 0.0, 0.25, 1.0), block_size=4)
    >>> codes, params = grid.reference(torch.tensor([[0.5, -2.0, 0.1, 1.9]]))
    >>> codes.tolist(), params.scale.item(), grid.decode(codes, params).tolist()
    ([[3, 0, 2, 4]], 2.0, [[0.5, -2.0, 0.0, 2.0]])
    """

    codebook: tuple[float, ...]
    block_size: int
    scale_dtype: str = "f32"

    def __post_init__(self) -> None:
        self._check()
        if not 2 <= len(self.codebook) <= 256:
            raise ConfigError("codebook", Described(f"{len(self.codebook)} values"), "2 to 256")
        values = array("f", self.codebook)
        if not all(map(math.isfinite, values)) or not all(map(operator.lt, values, values[1:])):
            raise ConfigError("codebook", self.codebook, "finite float32 values, strictly ascending")

    @property
    def levels(self) -> int:  # type: ignore[override]
        """Number of codes."""
        return len(self.codebook)

    def table(self, like: Tensor) -> Tensor:
        """Codebook as float32 on the device of `like`."""
        import torch

        return torch.tensor(self.codebook, dtype=torch.float32, device=like.device)

    def fit(self, weight: Tensor, importance: Tensor | None = None) -> GridParams:
        """Map each block's largest magnitude onto the table's; with `importance`, the best shrunk one."""
        import torch

        reach = max(abs(self.codebook[0]), abs(self.codebook[-1]))
        largest = self.blocks(weight).abs().amax(-1)
        best = self.storable(largest / reach)
        if importance is None:
            return GridParams(best)
        weights = self.blocks(importance.expand_as(weight))
        least = torch.full_like(best, float("inf"))
        for step in range(SHRINK):
            trial = GridParams(self.storable(largest / reach * (1 - step / (2 * SHRINK))))
            error = self.decode(self.encode(weight, trial), trial) - weight
            loss = (weights * self.blocks(error).square()).sum(-1)
            best = torch.where(loss < least, trial.scale, best)
            least = torch.minimum(loss, least)
        return GridParams(best)

    def encode(self, weight: Tensor, params: GridParams) -> Tensor:
        """Index of the nearest table value, the lower one on a tie."""
        import torch

        table = self.table(weight)
        shape = (int(weight.shape[0]), int(weight.shape[1]))
        scale = expand_blocks(params.scale.float(), shape, (1, self.columns(weight)))
        steps = torch.where(scale == 0, torch.zeros_like(weight), weight / scale)
        middles = (table[1:] + table[:-1]) / 2
        return torch.bucketize(steps.contiguous(), middles).to(torch.uint8)

    def quantized(self, codes: Tensor, params: GridParams) -> QuantizedTensor:
        """Canonical tensor of these codes and parameters."""
        block = (1, self.columns(codes))
        return QuantizedTensor(codes, params.scale, block, codebook=self.table(codes))

    def validate(self, quantized: QuantizedTensor) -> None:
        """Refuse codes or parameters that lie off the grid; see :meth:`Grid.validate`."""
        super().validate(quantized)
        if quantized.minimum is not None:
            raise ConfigError("minimum", Described("one value per block"), "none")
        found = quantized.codebook
        if found is None:
            described = Described("none (levels are equally spaced)")
            raise ConfigError("codebook", described, f"a table of {self.levels}")
        table = self.table(found)
        if found.shape != table.shape or bool((found != table).any()):
            raise ConfigError("codebook", found.tolist(), f"{table.tolist()}")
