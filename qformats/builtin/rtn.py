"""Quantizers that need only the weight."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from qformats.errors import ConfigError, Described
from qformats.interfaces.option import Option
from qformats.interfaces.packer import PackedTensor, Packer
from qformats.interfaces.quantizer import Quantizer
from qformats.numbers.quantized import QuantizedTensor
from qformats.work.gpus import require_device

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["RoundToNearest"]

_FEW = 4
"""Levels that are too few for plain rounding. The demo model's mean KL divergence is then 0.45 to 0.62 (groups of 32 or
128 columns), and 0.27 to 0.33 with the best scales; with 8 levels it is below 0.1 (scripts/measure_bits.py search)."""


class RoundToNearest(Quantizer):
    """Each format's own reference rule; with `importance`, the grid's weighted fit and rounding.

    With the option ``search``, weights without an importance get that fit too, all columns weighing the same.
    """

    name = "rtn"
    summary = "round to nearest, by each format's own reference rule"
    options = (
        Option("search", "mse: the scales of least squared error; none: each format's own rule (none)"),
        Option(
            "device",
            "where to compute: cpu, cuda, cuda:1, ... (calibration: a GPU if there is one; rtn: cpu)",
            decides=False,
            flag=True,
            metavar="DEVICE",
        ),
    )

    def quantize(self, weight: Tensor, packer: Packer, importance: Tensor | None = None) -> QuantizedTensor:
        """Codes and parameters of one weight."""
        if packer.grid is None:
            raise ConfigError("format", packer.name, "a quantized format")
        return packer.grid.quantize(weight, self._weights(weight, packer, importance))

    def review(self, packer: Packer, *, weighed: bool) -> str:
        """Refuse to search where there is nothing to choose; warn of the fewest levels."""
        require_device(self.given.get("device"))
        grid = packer.grid
        if grid is None:
            return ""
        if self._searches and grid.fixed:
            found = Described(f"mse with {packer.name}")
            expected = "none: the scales of this format follow from its largest weights"
            raise ConfigError("option search of the quantizer rtn", found, expected)
        if grid.levels > _FEW or grid.searches or grid.fixed:
            return ""
        return (
            f"rounding to the {grid.levels} levels of {packer.name} without calibration makes most models useless: "
            "choose a quantizer that calibrates, or more bits"
        )

    @property
    def _searches(self) -> bool:
        wanted = self.given.get("search", "none")
        if wanted not in ("none", "mse"):
            raise ConfigError("option search of the quantizer rtn", wanted, "none or mse")
        return wanted == "mse"

    def _weights(self, weight: Tensor, packer: Packer, importance: Tensor | None) -> Tensor | None:
        if importance is not None or not self._searches or packer.grid is None or packer.grid.fixed:
            return importance
        import torch

        return torch.ones(weight.shape[1], device=weight.device)

    def quantize_checked(
        self, dense: Tensor, packer: Packer, importance: Tensor | None = None
    ) -> QuantizedTensor:
        """Quantize in the format's own single pass, which also finds what is not finite.

        :meth:`quantize` stays with the grid: exports check the compiled kernels against it.
        """
        if importance is not None or self._searches:
            return super().quantize_checked(dense, packer, importance)
        return packer.quantize_reference(dense)

    def encode(self, dense: Tensor, packer: Packer, importance: Tensor | None = None) -> PackedTensor:
        """Quantize and pack in the format's own single pass; on the device that is wanted, with the result on the CPU.

        :meth:`quantize` stays where its weight is: exports compare the first rows of each tensor with it.
        """
        import torch

        device = torch.device(self.given.get("device", "cpu"))
        if device.type == "cpu":
            return self._encoded(dense, packer, importance)
        from qformats.work.visits import visit

        packed: list[PackedTensor] = []

        def compute(there: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            packed.append(self._encoded(there["weight"], packer, there.get("importance")))
            return packed[0].fields

        given = {"weight": dense} if importance is None else {"weight": dense, "importance": importance}
        fields = visit(device, given, compute)
        return replace(packed[0], fields=fields)

    def _encoded(self, dense: Tensor, packer: Packer, importance: Tensor | None) -> PackedTensor:
        if importance is not None or self._searches:
            return super().encode(dense, packer, importance)
        return packer.encode_reference(dense)
