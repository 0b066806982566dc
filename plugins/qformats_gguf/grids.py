"""Grids of the legacy block types, with llama.cpp's own rounding rules.

All arithmetic is float32, rounded to nearest even, never fused; codes are chosen with the unrounded scale and
the scale is stored rounded to float16. Source: llama.cpp:ggml/src/ggml-quants.c (``quantize_row_*_ref``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qformats import AffineGrid, GridParams
from qformats.numbers import quotient

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AbsMaxGrid", "MinMaxGrid", "SignedMaxGrid"]

_LARGEST = 65504.0
"""Largest float16."""


def _inverse(scale: Tensor) -> Tensor:
    """Divide 1 by the scale; 0 where that is 0, or so small that its inverse is infinite."""
    import torch

    inverse = 1.0 / scale
    return torch.where((scale == 0) | inverse.isinf(), torch.zeros_like(scale), inverse)


def _weighted(grid: AffineGrid, weight: Tensor, importance: Tensor) -> tuple[Tensor, GridParams]:
    """Codes and parameters as llama.cpp chooses them with an importance matrix.

    Raises
    ------
    NonFiniteError
        If weights are so large that C's sums overflow: it stores zeros for them.
    """
    import torch

    from qformats.kernels.dense import too_large
    from qformats_gguf.superblocks.search import search_single

    grid.blocks(weight)
    rows, columns = weight.shape
    count = columns // grid.block_size
    source = weight.detach().to("cpu", torch.float32).contiguous()
    beyond = int((source.view(-1, grid.block_size).abs().amax(1) > _LARGEST * grid.levels).sum())
    if beyond:
        raise too_large(f"{beyond} of {rows * count} blocks need a scale beyond f16", weight)
    given = importance.detach().to("cpu", torch.float32).reshape(-1, count, grid.block_size).contiguous()
    codes = torch.empty((rows, columns), dtype=torch.uint8)
    both = grid.kind == "minimum"
    halves = torch.empty((rows, count, 1 + both), dtype=torch.float16)
    search_single(
        source.numpy(),
        given.numpy(),
        grid.levels,
        codes.numpy(),
        halves.view(torch.uint16).numpy().reshape(-1, 1 + both),
    )
    scale, *low = (part.contiguous().to(weight.device) for part in halves.unbind(-1))
    return codes.to(weight.device), GridParams(scale, minimum=low[0] if low else None)


class _WeightedGrid(AffineGrid):
    """A type with a search of its own for importances."""

    def fit(self, weight: Tensor, importance: Tensor | None = None) -> GridParams:
        """Cover each block's range; with `importance`, as llama.cpp does with an importance matrix."""
        if importance is None:
            return super().fit(weight)
        return _weighted(self, weight, importance)[1]

    def weighted(self, weight: Tensor, importance: Tensor) -> tuple[Tensor, GridParams]:
        """Codes and parameters as llama.cpp chooses them with an importance matrix."""
        return _weighted(self, weight, importance)


@dataclass(frozen=True)
class SignedMaxGrid(_WeightedGrid):
    """q4_0 and q5_0: the first element of largest magnitude, with its sign, gets code 0."""

    def reference(self, weight: Tensor) -> tuple[Tensor, GridParams]:
        """Codes and scales as llama.cpp chooses them."""
        import torch

        blocks = self.blocks(weight.float())
        magnitude = blocks.abs()
        largest = magnitude.amax(-1, keepdim=True)
        # Small numbers: on a GPU what is read and written takes the time.
        columns = torch.arange(blocks.shape[-1], device=weight.device, dtype=torch.int8)
        first = torch.where(magnitude == largest, columns, blocks.shape[-1]).amin(-1, keepdim=True)
        extreme = torch.where(largest > 0, blocks.gather(-1, first.long()), torch.zeros_like(largest))
        scale = quotient(extreme, -self.center)
        # C converts x * inf to an int8 here; x86 makes that 0.
        beyond = (scale != 0) & (1.0 / scale).isinf()
        middle = torch.where(beyond, 0.0, self.center + 0.5)
        codes = (blocks * _inverse(scale)).add_(middle).trunc_().clamp_(0, self.levels - 1)
        return codes.flatten(1).to(torch.uint8), GridParams(scale.squeeze(-1).to(torch.float16))


@dataclass(frozen=True)
class MinMaxGrid(_WeightedGrid):
    """q4_1 and q5_1: the block's minimum gets code 0, its maximum the last code."""

    def reference(self, weight: Tensor) -> tuple[Tensor, GridParams]:
        """Codes, scales and minima as llama.cpp chooses them."""
        import torch

        blocks = self.blocks(weight.float())
        low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
        # Of equal zeros the first one is the minimum, whatever its sign; a block of zeros has scale +0.
        first = (blocks == low).to(torch.uint8).argmax(-1, keepdim=True)
        low = blocks.gather(-1, first)
        scale = quotient((high - low).abs(), self.levels - 1)
        codes = ((blocks - low) * _inverse(scale) + 0.5).trunc().clamp(0, self.levels - 1)
        return codes.flatten(1).to(torch.uint8), GridParams(
            scale.squeeze(-1).to(torch.float16), minimum=low.squeeze(-1).to(torch.float16)
        )


@dataclass(frozen=True)
class AbsMaxGrid(AffineGrid):
    """q8_0: the largest magnitude gets code 127; halves are rounded away from zero. Importances make no difference."""

    fixed = True

    def weighted(self, weight: Tensor, importance: Tensor) -> tuple[Tensor, GridParams]:
        """As without importances."""
        return self.reference(weight)

    def reference(self, weight: Tensor) -> tuple[Tensor, GridParams]:
        """Codes and scales as llama.cpp chooses them."""
        import torch

        blocks = self.blocks(weight.float())
        scale = quotient(blocks.abs().amax(-1, keepdim=True), 127.0)
        steps = (blocks * _inverse(scale)).to(torch.float64)
        # In float32, 0.49999997 + 0.5 rounds to 1; C's roundf gives 0.
        rounded = (steps.abs() + 0.5).floor() * steps.sign()
        return (rounded + 128).flatten(1).to(torch.uint8), GridParams(scale.squeeze(-1).to(torch.float16))
