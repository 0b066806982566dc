"""tq1_0 and tq2_0: the levels -1, 0 and 1, and one scale for 256 of them.

Source: llama.cpp:ggml/src/ggml-quants.c (``quantize_row_tq1_0_ref``, ``quantize_row_tq2_0_ref``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qformats import AffineGrid, GridParams, KernelSpec, PackedTensor, QuantizedTensor
from qformats_gguf.base import GGUFPacker, spec_of
from qformats_gguf.types import GGMLType

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TERNARY", "TernaryGrid", "TernaryPacker"]

TERNARY = ("tq1_0", "tq2_0")
BLOCK = 256
_GROUPS = ((0, 160, 32), (160, 240, 16), (240, 256, 4))
"""Parts of a block of tq1_0: first and last element, and how many bytes hold them."""


@dataclass(frozen=True)
class TernaryGrid(AffineGrid):
    """The largest magnitude of a block is the scale; importances make no difference.

    Attributes
    ----------
    used : int
        How many codes there are: tq2_0 has room for a fourth, whose level is 2, but never writes it.
    """

    fixed = True

    used: int = 3

    @property
    def levels(self) -> int:  # type: ignore[override]
        """Number of codes."""
        return self.used

    def reference(self, weight: Tensor) -> tuple[Tensor, GridParams]:
        """Codes and scales as llama.cpp chooses them."""
        import torch

        blocks = self.blocks(weight.float())
        scale = blocks.abs().amax(-1, keepdim=True)
        inverse = torch.where(scale == 0, torch.zeros_like(scale), 1.0 / scale)
        steps = (blocks * inverse).double()
        rounded = (steps.abs() + 0.5).floor() * steps.sign()
        # C rounds infinity and NaN, which blocks below 2**-128 give, to a number whose lower half is 0.
        rounded = torch.where(steps.isfinite(), rounded, torch.zeros_like(rounded))
        return (rounded + 1).flatten(1).to(torch.uint8), GridParams(scale.squeeze(-1).to(torch.float16))

    def fit(self, weight: Tensor, importance: Tensor | None = None) -> GridParams:
        """Scales as llama.cpp chooses them, whatever the importance."""
        return self.reference(weight)[1]

    def weighted(self, weight: Tensor, importance: Tensor) -> tuple[Tensor, GridParams]:
        """As without importances."""
        return self.reference(weight)


class TernaryPacker(GGUFPacker):
    """``tq1_0`` (five levels in a byte) and ``tq2_0`` (four)."""

    def __init__(self, kind: GGMLType) -> None:
        self.type = kind
        self.grid = TernaryGrid(2, BLOCK, zero=1, used=3 if kind.name == "tq1_0" else 4)
        summary = "levels -1, 0 and 1, one scale per 256, for ternary models"
        self.spec = spec_of(kind, summary, bits=2, kernel=KernelSpec(2, "affine", kind.block_size, "f16"))

    def pack(self, quantized: QuantizedTensor) -> PackedTensor:
        """Bytes of codes and scales; both are stored unchanged."""
        import torch

        rows, columns = quantized.shape
        codes = quantized.codes.reshape(rows, columns // BLOCK, BLOCK).to(torch.int32)
        parts = []
        if self.type.name == "tq2_0":
            four = codes.view(*codes.shape[:2], 2, 4, 32)
            shift = torch.arange(0, 8, 2, device=codes.device).view(4, 1)
            parts.append((four << shift).sum(3).flatten(2))
        else:
            for first, last, width in _GROUPS:
                digits = codes[..., first:last].reshape(*codes.shape[:2], (last - first) // width, width)
                number = torch.zeros_like(digits[..., 0, :])
                for place in range(5):
                    number = number * 3 + (digits[..., place, :] if place < digits.shape[2] else 0)
                # Fractions of 243 as fractions of 256, rounded up: the digits are the first ones of byte / 256.
                parts.append((number * 256 + 242) // 243)
        halves = quantized.scale.to(torch.float16).unsqueeze(-1).contiguous().view(torch.uint8)
        blocks = torch.cat([*(part.to(torch.uint8) for part in parts), halves], -1)
        return PackedTensor(self, (rows, columns), {"blocks": blocks.flatten(1)})

    def unpack(self, packed: PackedTensor) -> QuantizedTensor:
        """Codes and scales as stored; stacked matrices become rows of one."""
        import torch

        rows, columns = math.prod(packed.shape[:-1]), int(packed.shape[-1])
        blocks = self.blocks(packed).reshape(rows, columns // BLOCK, self.type.block_bytes)
        scale = blocks[..., -2:].contiguous().view(torch.float16).squeeze(-1)
        parts = []
        if self.type.name == "tq2_0":
            shift = torch.arange(0, 8, 2, device=blocks.device, dtype=torch.uint8).view(4, 1)
            four = blocks[..., :64].reshape(rows, columns // BLOCK, 2, 1, 32)
            parts.append(((four >> shift) & 3).flatten(2))
        else:
            at = 0
            for first, last, width in _GROUPS:
                stored = blocks[..., at : at + width].to(torch.int32)
                digits = [((stored * 3**place & 255) * 3) >> 8 for place in range((last - first) // width)]
                parts.append(torch.stack(digits, 2).flatten(2).to(torch.uint8))
                at += width
        codes = torch.cat(parts, -1).reshape(rows, columns)
        return QuantizedTensor(codes, scale, (1, BLOCK), zero_point=1)

    def dequantize(self, packed: PackedTensor) -> Tensor:
        """Values as float32."""
        return self.unpack(packed).dequantize().reshape(packed.shape)

    def encode_reference(self, dense: Tensor) -> PackedTensor:
        """llama.cpp's own rounding; leading dimensions are rows."""
        return encode_stacked(self, dense)


def encode_stacked(packer: GGUFPacker, dense: Tensor) -> PackedTensor:
    """Quantize by the grid's reference rule and pack, leading dimensions kept.

    Raises
    ------
    NonFiniteError
        If a weight is not finite, or so large that a block's scale is beyond what is stored.
    ShapeError
        If rows do not divide into blocks.
    """
    from qformats.kernels.dense import require_finite

    packer.require(dense.shape)
    require_finite(dense)
    assert packer.grid is not None
    weight = dense.reshape(math.prod(dense.shape[:-1]), dense.shape[-1])
    packed = packer.pack(packer.grid.quantize(weight))
    (shape, _), *_ = packer.stored(dense.shape).values()
    return PackedTensor(packer, tuple(dense.shape), {"blocks": packed.fields["blocks"].reshape(shape)})
