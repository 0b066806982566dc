"""nvfp4: floats of four bits, a float of eight bits (UE4M3) for 16 of them, and a factor for the whole matrix.

The factor is a tensor of its own, ``NAME.scale`` beside ``NAME.weight``, one number for each matrix; a file without it
means 1. llama.cpp multiplies what a matrix gives by it; here it belongs to the scales:
``fl(level * fl(scale * factor))``.

Source: llama.cpp:ggml/src/ggml-quants.c (``dequantize_row_nvfp4``), src/llama-graph.cpp (``build_lora_mm``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qformats import FieldSpec, FormatSpec, KernelSpec, PackedTensor, QuantizedTensor
from qformats.errors import ConfigError
from qformats.interfaces import Float4Packer
from qformats.numbers import Float4Grid
from qformats_gguf.base import SOURCE, GGUFPacker
from qformats_gguf.types import GGMLType

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FACTOR", "NvidiaPacker", "factor_name"]

FACTOR = "scale"
"""Field of the factors."""
_BLOCK, _SUB = 64, 16
_LARGEST = 127
"""The byte that stands for NaN in E4M3: llama.cpp decodes it as 0."""


def factor_name(weight: str) -> str:
    """Name of the tensor of factors of a weight.

    Examples
    --------
    >>> from qformats_gguf.nvfp4 import factor_name
    >>> factor_name("blk.0.attn_q.weight")
    'blk.0.attn_q.scale'
    """
    return f"{weight.removesuffix('weight')}{FACTOR}"


class NvidiaPacker(GGUFPacker, Float4Packer):
    """``nvfp4``: four bytes with scales, 32 with codes."""

    def __init__(self, kind: GGMLType) -> None:
        self.type, self.divides = kind, False
        self.grid = Float4Grid()
        width = f"K / {kind.block_size} * {kind.block_bytes}"
        self.spec = FormatSpec(
            "gguf",
            kind.name,
            "4-bit floats, an 8-bit float per 16, one factor per matrix",
            (
                FieldSpec("blocks", ("N", width), "u8", "packed blocks"),
                FieldSpec(FACTOR, ("1",), "f32", "factors"),
            ),
            bits=4,
            block_size=_SUB,
            source=SOURCE,
            sqnr_floor_db=20.0,
            kernel=KernelSpec(4, "float", _SUB, "f32"),
        )

    def stored(self, shape: Sequence[int]) -> dict[str, tuple[tuple[int, ...], str]]:
        """Rows of blocks, and a factor for each matrix."""
        return {**super().stored(shape), FACTOR: ((math.prod(shape[:-2]),), "f32")}

    def veto(self, shape: Sequence[int]) -> str | None:
        """Whole blocks, in matrices that are not empty."""
        problem = super().veto(shape)
        return problem or (None if all(shape) else f"it is empty ({' x '.join(map(str, shape))})")

    def row_step(self, shape: Sequence[int]) -> int:
        """Whole matrices: one by itself, or each of a stack."""
        return int(len(shape) > 2)

    def row_packer(self, shape: Sequence[int]) -> GGUFPacker | None:
        """The format itself: blocks lie within rows."""
        return self

    def scales(self, packed: PackedTensor) -> Sequence[Tensor]:
        """Scales as products, of all blocks."""
        return [self._products(packed)[0]]

    def from_stored(self, fields: Mapping[str, Tensor], shape: tuple[int, int]) -> PackedTensor:
        """Fields as they are."""
        return PackedTensor(self, shape, {name: fields[name] for name in ("blocks", FACTOR)})

    def _products(self, packed: PackedTensor) -> tuple[Tensor, Tensor]:
        """Scales of twice the levels, float32 ``(rows, K / 16)``; stored codes, uint8 ``(rows, K)``."""
        import torch

        rows, columns = math.prod(packed.shape[:-1]), int(packed.shape[-1])
        blocks = self.blocks(packed).reshape(rows, columns // _BLOCK, self.type.block_bytes)
        # The sign is not looked at; what E4M3 calls NaN is 0 here, and 480 with a sign.
        stored = blocks[..., :4]
        inner = torch.where(stored == _LARGEST, 0, stored & _LARGEST).to(torch.int32)
        mantissa = (inner & 7).float() / 8
        normal = (1 + mantissa) * torch.exp2((inner >> 3).float() - 7)
        value = torch.where(inner >> 3 == 0, mantissa * 2.0**-6, normal).reshape(rows, columns // _SUB)
        factors = packed.fields[FACTOR].float().repeat_interleave(int(packed.shape[-2]))
        scale = value * factors[:, None] / 2
        both = blocks[..., 4:].reshape(rows, columns // _SUB, _SUB // 2)
        return scale, torch.cat([both & 15, both >> 4], -1).reshape(rows, columns)

    def pack(self, quantized: QuantizedTensor) -> PackedTensor:
        """Bytes of one matrix; codes and scales are stored unchanged."""
        import torch

        self.require(quantized.shape)
        codes, inner, outer = self._parts(quantized)
        rows, columns = quantized.shape
        parts = codes.view(rows, columns // _SUB, _SUB)
        both = (parts[..., :8] | parts[..., 8:] << 4).reshape(rows, columns // _BLOCK, _BLOCK // 2)
        scales = inner.view(torch.uint8).reshape(rows, columns // _BLOCK, 4)
        blocks = torch.cat([scales, both], -1).flatten(1)
        return PackedTensor(self, (rows, columns), {"blocks": blocks, FACTOR: outer})

    def unpack(self, packed: PackedTensor) -> QuantizedTensor:
        """Codes and scales; the code of -0 becomes that of 0. Stacked matrices become rows of one."""
        if len(packed.shape) < 2:
            raise ConfigError("shape", tuple(packed.shape), "a matrix, or a stack of them")
        scale, stored = self._products(self.intact(packed))
        first = float(packed.fields[FACTOR][0]) if packed.fields[FACTOR].numel() else 1.0
        return self._canonical(stored, scale, first)

    def dequantize(self, packed: PackedTensor) -> Tensor:
        """Values as float32."""
        return self.unpack(packed).dequantize().reshape(packed.shape)

    def encode_reference(self, dense: Tensor) -> PackedTensor:
        """ModelOpt's rule, matrix by matrix: llama.cpp has none that knows of factors.

        Raises
        ------
        NonFiniteError
            If a weight is not finite.
        ShapeError
            If rows do not divide into blocks.
        """
        import torch

        from qformats.kernels.dense import require_finite

        self.require(dense.shape)
        require_finite(dense)
        matrices = dense.reshape(-1, *dense.shape[-2:])
        packed = [self.pack(self.grid.quantize(matrix)) for matrix in matrices]
        fields = {
            name: torch.cat([each.fields[name].reshape(-1) for each in packed]).reshape(shape)
            for name, (shape, _) in self.stored(dense.shape).items()
        }
        return PackedTensor(self, tuple(dense.shape), fields)
