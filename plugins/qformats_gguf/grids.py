"""Grids of the legacy block types, with llama.cpp's own rounding rules.

All arithmetic is float32, rounded to nearest even, never fused; codes are chosen with the unrounded scale and
the scale is stored rounded to float16. Source: llama.cpp:ggml/src/ggml-quants.c (``quantize_row_*_ref``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qformats import AffineGrid, GridParams

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AbsMaxGrid", "MinMaxGrid", "SignedMaxGrid"]


def _inverse(scale: Tensor) -> Tensor:
    """Divide 1 by the scale; 0 where that is 0, or so small that its inverse is infinite."""
    import torch

    inverse = 1.0 / scale
    return torch.where((scale == 0) | inverse.isinf(), torch.zeros_like(scale), inverse)


@dataclass(frozen=True)
class SignedMaxGrid(AffineGrid):
    """q4_0 and q5_0: the first element of largest magnitude, with its sign, gets code 0."""

    def reference(self, weight: Tensor) -> tuple[Tensor, GridParams]:
        """Codes and scales as llama.cpp chooses them."""
        import torch

        blocks = self.blocks(weight.float())
        magnitude = blocks.abs()
        largest = magnitude.amax(-1, keepdim=True)
        columns = torch.arange(blocks.shape[-1], device=weight.device)
        first = torch.where(magnitude == largest, columns, blocks.shape[-1]).amin(-1, keepdim=True)
        extreme = torch.where(largest > 0, blocks.gather(-1, first), torch.zeros_like(largest))
        scale = extreme / -float(self.center)
        codes = (blocks * _inverse(scale) + (self.center + 0.5)).trunc().clamp(0, self.levels - 1)
        # C converts x * inf to an int8 here; x86 makes that 0.
        codes = torch.where((scale != 0) & (1.0 / scale).isinf(), torch.zeros_like(codes), codes)
        return codes.flatten(1).to(torch.uint8), GridParams(scale.squeeze(-1).to(torch.float16))


@dataclass(frozen=True)
class MinMaxGrid(AffineGrid):
    """q4_1 and q5_1: the block's minimum gets code 0, its maximum the last code."""

    def reference(self, weight: Tensor) -> tuple[Tensor, GridParams]:
        """Codes, scales and minima as llama.cpp chooses them."""
        import torch

        blocks = self.blocks(weight.float())
        low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
        # Of equal zeros the first one is the minimum, whatever its sign; a block of zeros has scale +0.
        first = (blocks == low).to(torch.uint8).argmax(-1, keepdim=True)
        low = blocks.gather(-1, first)
        scale = (high - low).abs() / float(self.levels - 1)
        codes = ((blocks - low) * _inverse(scale) + 0.5).trunc().clamp(0, self.levels - 1)
        return codes.flatten(1).to(torch.uint8), GridParams(
            scale.squeeze(-1).to(torch.float16), minimum=low.squeeze(-1).to(torch.float16)
        )


@dataclass(frozen=True)
class AbsMaxGrid(AffineGrid):
    """q8_0: the largest magnitude gets code 127; halves are rounded away from zero."""

    def reference(self, weight: Tensor) -> tuple[Tensor, GridParams]:
        """Codes and scales as llama.cpp chooses them."""
        import torch

        blocks = self.blocks(weight.float())
        scale = blocks.abs().amax(-1, keepdim=True) / 127.0
        steps = (blocks * _inverse(scale)).to(torch.float64)
        # In float32, 0.49999997 + 0.5 rounds to 1; C's roundf gives 0.
        rounded = (steps.abs() + 0.5).floor() * steps.sign()
        return (rounded + 128).flatten(1).to(torch.uint8), GridParams(scale.squeeze(-1).to(torch.float16))
