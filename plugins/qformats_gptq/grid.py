"""The numbers that a GPTQ group can represent, and the rule that AutoGPTQ rounds by.

A group of `g` columns of a row has a float16 scale and a zero point ``z``; a weight is ``scale * (code - z)``. The
range of a group always includes 0. Symmetric grids take ``[-a, a]`` with the largest magnitude ``a`` and ``z`` in the
middle, ``scale = 2a / (2**bits - 1)``.

Two faults of the original are left out: there the range of a symmetric group without negative weights is ``[0, a]``
while the zero point stays in the middle, so that half of it is cut off; and the scale is rounded to float16 only after
codes are chosen with it.

Source: AutoGPTQ:auto_gptq/quantization/quantizer.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qformats import AffineGrid, GridParams, QuantizedTensor
from qformats.numbers import quotient

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["GroupGrid"]


@dataclass(frozen=True)
class GroupGrid(AffineGrid):
    """Equally spaced levels in groups of columns; the last group of a row may be short.

    Attributes
    ----------
    reordered : bool
        Whether columns may belong to groups in another order (``g_idx``), each group with as many as in order.
    """

    reordered: bool = False

    def blocks(self, weight: Tensor) -> Tensor:
        """View `weight` as ``(N, groups, columns of a group)``; a short last group is padded with zeros."""
        import torch

        columns = int(weight.shape[1])
        short = -columns % self.columns(weight) if weight.ndim == 2 and columns else 0
        return super().blocks(torch.nn.functional.pad(weight, (0, short)) if short else weight)

    def reference(self, weight: Tensor) -> tuple[Tensor, GridParams]:
        """Codes and parameters by AutoGPTQ's rule, without its faults."""
        import torch

        weight = weight.float()
        blocks = self.blocks(weight)
        low, high = blocks.amin(-1).clamp(max=0), blocks.amax(-1).clamp(min=0)
        if self.kind == "symmetric":
            high = torch.maximum(-low, high)
            low = -high
        empty = low == high
        low, high = low.masked_fill(empty, -1.0), high.masked_fill(empty, 1.0)
        scale = self.storable(quotient(high - low, self.levels - 1))
        zero = None
        if self.kind == "zero_point":
            # Where the scale underflows to 0 any zero point will do.
            steps = torch.where(scale == 0, torch.zeros_like(low), -low / scale)
            zero = steps.round().clamp(0, self.levels - 1).to(torch.int32)
        params = GridParams(scale, zero)
        return self.encode(weight, params), params

    def validate(self, quantized: QuantizedTensor) -> None:
        """Refuse codes or parameters that lie off the grid; see :meth:`qformats.Grid.validate`."""
        super().validate(replace(quantized, g_idx=None) if self.reordered else quantized)
