"""The numbers that a group of MLX can represent, and the rule that it rounds by.

The number of a group that lies farthest from zero is stored without an error: codes count from it, so that scales of
groups whose largest number is positive are negative. Then the scale is changed a little, so that zero is a level too.

Source: mlx:mlx/backend/cpu/quantized.cpp (``quantize``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qformats import AffineGrid, GridParams
from qformats.numbers import expand_blocks, quotient

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MLXGrid"]

_LEAST = 1e-7
"""Smallest step that the program divides by."""


@dataclass(frozen=True)
class MLXGrid(AffineGrid):
    """``scale * code + bias``; both may have either sign."""

    def reference(self, weight: Tensor) -> tuple[Tensor, GridParams]:
        """Codes and parameters by the program's rule; codes are chosen before these are rounded to their dtype."""
        import torch

        weight = weight.float()
        blocks = self.blocks(weight)
        low, high = blocks.amin(-1), blocks.amax(-1)
        below = low.abs() > high.abs()
        scale = quotient(high - low, self.levels - 1).clamp(min=_LEAST)
        scale = torch.where(below, scale, -scale)
        edge = torch.where(below, low, high)
        code = (edge / scale).round()
        scale = torch.where(code != 0, edge / code, scale)
        bias = torch.where(code != 0, edge, torch.zeros_like(edge))
        shape, block = (int(weight.shape[0]), int(weight.shape[1])), (1, self.columns(weight))
        from_edge = weight - expand_blocks(bias, shape, block)
        codes = (from_edge / expand_blocks(scale, shape, block)).round().clamp(0, self.levels - 1)
        return codes.to(torch.uint8), GridParams(self.storable(scale), minimum=self.storable(bias))
