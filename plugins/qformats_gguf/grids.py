"""Grids of the legacy block types, with llama.cpp's own rounding rules.

All arithmetic is float32, rounded to nearest even, never fused; codes are chosen with the unrounded scale and
the scale is stored rounded to float16. Source: llama.cpp:ggml/src/ggml-quants.c (``quantize_row_*_ref``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qformats import AffineGrid, GridParams, QuantizedTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["AbsMaxGrid", "MinMaxGrid", "SignedMaxGrid"]


def _inverse(scale: Tensor) -> Tensor:
    """Divide 1 by the scale; 0 where that is 0, or so small that its inverse is infinite."""
    import torch

    inverse = 1.0 / scale
    return torch.where((scale == 0) | inverse.isinf(), torch.zeros_like(scale), inverse)


class _Searched(AffineGrid):
    """A grid whose parameters, where columns differ in importance, are found together with the codes."""

    def _search(self, weight: Tensor, importance: Tensor) -> tuple[Tensor, GridParams]:
        raise NotImplementedError

    def fit(self, weight: Tensor, importance: Tensor | None = None) -> GridParams:
        """Cover each block's range; with `importance`, as llama.cpp does with an importance matrix."""
        return super().fit(weight) if importance is None else self._search(weight, importance)[1]

    def quantize(self, weight: Tensor, importance: Tensor | None = None) -> QuantizedTensor:
        """Round as llama.cpp does, with `importance` as it does with an importance matrix."""
        if importance is None:
            return super().quantize(weight)
        codes, params = self._search(weight, importance)
        self.require_storable(params, weight)
        return self.quantized(codes, params)


def _arrays(weight: Tensor, importance: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    import torch

    from qformats_gguf.weighed import weights_of

    values = weight.detach().to("cpu", torch.float32).contiguous().numpy()
    return values, weights_of(values, importance.detach().to("cpu", torch.float32).numpy())


@dataclass(frozen=True)
class SignedMaxGrid(_Searched):
    """q4_0 and q5_0: the first element of largest magnitude, with its sign, gets code 0."""

    def _search(self, weight: Tensor, importance: Tensor) -> tuple[Tensor, GridParams]:
        import torch

        from qformats_gguf.weighed import signed_search

        codes, scales = signed_search(*_arrays(weight, importance), self.center)
        params = GridParams(torch.from_numpy(scales).to(torch.float16).to(weight.device))
        return torch.from_numpy(codes).to(weight.device), params

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
class MinMaxGrid(_Searched):
    """q4_1 and q5_1: the block's minimum gets code 0, its maximum the last code."""

    def _search(self, weight: Tensor, importance: Tensor) -> tuple[Tensor, GridParams]:
        import torch

        from qformats_gguf.weighed import minimum_search

        found = minimum_search(*_arrays(weight, importance), self.levels - 1)
        codes, scales, minima = (torch.from_numpy(each).to(weight.device) for each in found)
        return codes, GridParams(scales.to(torch.float16), minimum=minima.to(torch.float16))

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
    """q8_0: the largest magnitude gets code 127; halves are rounded away from zero. Importances make no difference."""

    def fit(self, weight: Tensor, importance: Tensor | None = None) -> GridParams:
        """Cover each block's range, whatever the importance."""
        return super().fit(weight)

    def quantize(self, weight: Tensor, importance: Tensor | None = None) -> QuantizedTensor:
        """Round as llama.cpp does, whatever the importance; see :meth:`~qformats.Grid.quantize`."""
        return super().quantize(weight)

    def reference(self, weight: Tensor) -> tuple[Tensor, GridParams]:
        """Codes and scales as llama.cpp chooses them."""
        import torch

        blocks = self.blocks(weight.float())
        scale = blocks.abs().amax(-1, keepdim=True) / 127.0
        steps = (blocks * _inverse(scale)).to(torch.float64)
        # In float32, 0.49999997 + 0.5 rounds to 1; C's roundf gives 0.
        rounded = (steps.abs() + 0.5).floor() * steps.sign()
        return (rounded + 128).flatten(1).to(torch.uint8), GridParams(scale.squeeze(-1).to(torch.float16))
