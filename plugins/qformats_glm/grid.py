"""The numbers that a GLM row can represent, and upstream's rule for choosing them.

One scale per row, no zero point. On a weight ``W`` of some float dtype upstream's code computes::

    s = (max(|W[r]|) / top) -> dtype of the scale        top = 7 or 127
    q = round_half_to_even(W[r] / s)

with torch's rules for dtypes: the first quotient is rounded to the dtype of the weight before it becomes the
scale, and the second one to the wider of both dtypes, *before* it is rounded to an integer. So codes depend on
the dtype of the source, and a quotient in float32 would give others.

Where upstream goes wrong qformats does not follow: codes stay within ``[-top, top]`` (upstream wraps +128 to
-128), and a row whose scale is 0 or underflows to 0 gets codes 0 (upstream: the integer of infinity). Wherever
neither happens the bytes are upstream's.

Source: GLM-130B:quantization/layers.py, SwissArmyTransformer:sat/quantization/kernels.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qformats import AffineGrid, GridParams
from qformats.numbers import quotient, torch_dtype

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["RowGrid"]


@dataclass(frozen=True)
class RowGrid(AffineGrid):
    """Signed codes of `bits` bits, stored unsigned: code ``q + 2**(bits - 1)``, zero point ``2**(bits - 1)``.

    The lowest level (-8 or -128) is a valid code for readers and never chosen: `low` is 1.
    """

    block_size: int = 0
    low: int = 1

    @property
    def top(self) -> int:
        """Largest signed code, 7 or 127."""
        return self.center - 1

    def reference(self, weight: Tensor) -> tuple[Tensor, GridParams]:
        """Codes and scales as upstream chooses them; the scale has the dtype that is stored."""
        import torch

        # One row a block: `blocks` checks that there are columns at all.
        largest = self.blocks(weight).abs().amax(-1)
        scale = quotient(largest, self.top).to(torch_dtype(self.scale_dtype))
        # Where the scale underflows, every weight is far below 0.5, and codes become 0.
        divisor = torch.where(scale == 0, torch.ones_like(scale), scale)
        steps = weight / divisor
        codes = steps.float().round().clamp(-self.top, self.top) + self.center
        return codes.to(torch.uint8), GridParams(scale)
