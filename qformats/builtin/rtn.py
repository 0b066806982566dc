"""Quantizers that need only the weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qformats.errors import ConfigError
from qformats.interfaces.packer import PackedTensor, Packer
from qformats.interfaces.quantizer import Quantizer
from qformats.numbers.quantized import QuantizedTensor

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["RoundToNearest"]


class RoundToNearest(Quantizer):
    """Each format's own reference rule; with `importance`, the grid's weighted fit and rounding."""

    name = "rtn"
    summary = "round to nearest, by each format's own reference rule"

    def quantize(self, weight: Tensor, packer: Packer, importance: Tensor | None = None) -> QuantizedTensor:
        """Codes and parameters of one weight."""
        if packer.grid is None:
            raise ConfigError("format", packer.name, "a quantized format")
        return packer.grid.quantize(weight, importance)

    def quantize_checked(
        self, dense: Tensor, packer: Packer, importance: Tensor | None = None
    ) -> QuantizedTensor:
        """Quantize in the format's own single pass, which also finds what is not finite.

        :meth:`quantize` stays with the grid: exports check the compiled kernels against it.
        """
        if importance is not None:
            return super().quantize_checked(dense, packer, importance)
        return packer.quantize_reference(dense)

    def encode(self, dense: Tensor, packer: Packer, importance: Tensor | None = None) -> PackedTensor:
        """Quantize and pack in the format's own single pass."""
        if importance is not None:
            return super().encode(dense, packer, importance)
        return packer.encode_reference(dense)
