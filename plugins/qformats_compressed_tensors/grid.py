"""The numbers that a group of integers can represent, and the rule that compressed-tensors rounds by.

A group has a scale and, where it is not symmetric, a zero point; its range always includes 0. A symmetric scale is the
largest magnitude over 7.5 (4 bits) or 127.5 (8), so that the lowest code is in use. Here all of it is computed in
float32, and codes are chosen with the scale as it is stored; the library computes in the dtype of the weight.

Source: compressed-tensors:src/compressed_tensors/quantization/utils/helpers.py, lifecycle/forward.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qformats import AffineGrid, GridParams
from qformats.numbers import expand_blocks, quotient, torch_dtype

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["IntegerGrid"]


@dataclass(frozen=True)
class IntegerGrid(AffineGrid):
    """Equally spaced levels; code ``q + 2 ** (bits - 1)`` for the signed code ``q`` that is stored."""

    def reference(self, weight: Tensor) -> tuple[Tensor, GridParams]:
        """Codes and parameters by the library's rule."""
        import torch

        weight = weight.float()
        blocks = self.blocks(weight)
        low, high = blocks.amin(-1).clamp(max=0), blocks.amax(-1).clamp(min=0)
        symmetric = self.kind == "symmetric"
        steps = self.levels - 1
        reach = quotient(torch.maximum(-low, high), steps / 2) if symmetric else quotient(high - low, steps)
        scale = self.storable(reach)
        scale = scale.masked_fill(scale == 0, torch.finfo(torch_dtype(self.scale_dtype)).eps)
        zero = None
        if not symmetric:
            middle = self.levels // 2
            signed = (-middle - low / scale).clamp(-middle, middle - 1).round()
            # Of zeros alone the library makes a division of 0 by 0, and of that a signed zero point of 0.
            zero = (signed.masked_fill(low == high, 0.0) + middle).to(torch.int32)
        params = GridParams(scale, zero)
        return self.encode(weight, params), params

    def encode(self, weight: Tensor, params: GridParams) -> Tensor:
        """Round to nearest, ties to even signed codes: the zero point is added before."""
        import torch

        if params.zero_point is None:
            return super().encode(weight, params)
        shape, block = (int(weight.shape[0]), int(weight.shape[1])), (1, self.columns(weight))
        scale = expand_blocks(params.scale.float(), shape, block)
        middle = self.levels // 2
        zero = expand_blocks(params.zero_point.float() - middle, shape, block)
        steps = torch.where(scale == 0, torch.zeros_like(weight), weight / scale) + zero
        return (steps.clamp(-middle, middle - 1).round() + middle).to(torch.uint8)
