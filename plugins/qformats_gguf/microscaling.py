"""mxfp4: floats of four bits, and a power of two for 32 of them.

Source: llama.cpp:ggml/src/ggml-quants.c (``quantize_row_mxfp4_ref``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from qformats import GridParams, KernelSpec, PackedTensor, QuantizedTensor, TableGrid
from qformats.numbers import E2M1, Float4Grid, RuledGrid, half_powers, nearest_power, stored_exponents
from qformats_gguf.base import GGUFPacker, spec_of
from qformats_gguf.ternary import encode_stacked
from qformats_gguf.types import GGMLType

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Mxfp4Grid", "Mxfp4Packer"]

BLOCK = 32
_MIDDLES = tuple((a + b) / 2 for a, b in pairwise(level for level in E2M1 if level >= 0))


@dataclass(frozen=True)
class Mxfp4Grid(RuledGrid):
    """Floats of four bits times a power of two."""

    def storable(self, values: Tensor) -> Tensor:
        """Nearest powers of two, of any exponent."""
        return nearest_power(values, 127)

    def reference(self, weight: Tensor) -> tuple[Tensor, GridParams]:
        """Codes and scales as llama.cpp chooses them."""
        import torch

        blocks = self.blocks(weight.float())
        largest = blocks.abs().amax(-1, keepdim=True)
        # Rounded to float32 before it is rounded down: just below a power of two, C gets that power's exponent.
        logarithm = torch.log2(largest.to(torch.float64)).to(torch.float32).floor()
        exponent = torch.where(largest > 0, logarithm - 2 + 127, torch.zeros_like(logarithm))
        # C stores negative ones, of blocks below 2**-125, in a byte too; all codes of such blocks are 0.
        exponent = exponent.to(torch.int32) & 255
        scale = half_powers(exponent)
        middles = torch.tensor(_MIDDLES, dtype=torch.float32, device=weight.device)
        unit = blocks.double() / scale.double()
        level = torch.bucketize(unit.abs().float().contiguous(), middles)
        codes = torch.where(unit < 0, 7 - level, 7 + level)
        return codes.flatten(1).to(torch.uint8), GridParams(scale.squeeze(-1))


class Mxfp4Packer(GGUFPacker):
    """``mxfp4``: a byte with the exponent, and codes of four bits."""

    def __init__(self, kind: GGMLType) -> None:
        self.type = kind
        self.grid = Mxfp4Grid(E2M1, BLOCK, "f32")
        kernel = KernelSpec(4, "float", BLOCK, "f32")
        summary = "4-bit floats, a power of two per 32"
        self.spec = spec_of(kind, summary, bits=4, kernel=kernel, sqnr_floor_db=18.0)

    def scales(self, packed: PackedTensor) -> Sequence[Tensor]:
        """Ones, and NaN in place of scales of which the largest times a code are beyond float32."""
        import torch

        exponents = self.blocks(packed).reshape(-1, self.type.block_bytes)[:, 0]
        return [torch.ones((), device=exponents.device).where(exponents < 250, torch.nan)]

    def pack(self, quantized: QuantizedTensor) -> PackedTensor:
        """Bytes of codes and scales; both are stored unchanged."""
        import torch

        rows, columns = quantized.shape
        stored = Float4Grid.stored(quantized.codes)
        nibbles = stored.view(rows, columns // BLOCK, BLOCK)
        exponents = stored_exponents(quantized.scale).unsqueeze(-1)
        blocks = torch.cat([exponents, nibbles[..., :16] | nibbles[..., 16:] << 4], -1)
        return PackedTensor(self, (rows, columns), {"blocks": blocks.flatten(1)})

    def unpack(self, packed: PackedTensor) -> QuantizedTensor:
        """Codes and scales; the code of -0 becomes that of 0. Stacked matrices become rows of one."""
        import torch

        rows, columns = math.prod(packed.shape[:-1]), int(packed.shape[-1])
        blocks = self.blocks(packed).reshape(rows, columns // BLOCK, self.type.block_bytes)
        stored = blocks[..., 1:]
        nibbles = torch.cat([stored & 15, stored >> 4], -1).reshape(rows, columns)
        codes = Float4Grid.places(nibbles)
        assert isinstance(self.grid, TableGrid)
        table = self.grid.table(codes)
        return QuantizedTensor(codes, half_powers(blocks[..., 0]), (1, BLOCK), codebook=table)

    def dequantize(self, packed: PackedTensor) -> Tensor:
        """Values as float32."""
        return self.unpack(packed).dequantize().reshape(packed.shape)

    def encode_reference(self, dense: Tensor) -> PackedTensor:
        """llama.cpp's own rounding; leading dimensions are rows."""
        return encode_stacked(self, dense)
