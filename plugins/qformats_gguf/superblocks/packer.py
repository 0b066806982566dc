"""Packers of the types whose scales come in two levels, and of iq4_nl, which has their codes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qformats import KernelSpec, PackedTensor, Packer, QuantizedTensor
from qformats.errors import ConfigError, Described, NotExactError
from qformats.interfaces import Answer, foresee, represent
from qformats.numbers import empty
from qformats_gguf.base import GGUFPacker, spec_of
from qformats_gguf.superblocks.grids import apart, carrying, grid_of, joined_by, parts_of, search
from qformats_gguf.superblocks.layout import LAYOUTS
from qformats_gguf.superblocks.tensor import Parts, TwoLevelTensor, carried_by
from qformats_gguf.types import GGMLType

if TYPE_CHECKING:
    from torch import Tensor

    from qformats.interfaces import RowProducts

__all__ = ["SuperBlockPacker"]

_SUMMARIES = {
    "q2_k": "2 bits, 4-bit scale and minimum per 16",
    "q3_k": "3 bits, 6-bit scale per 16",
    "q4_k": "4 bits, 6-bit scale and minimum per 32",
    "q5_k": "5 bits, 6-bit scale and minimum per 32",
    "q6_k": "6 bits, 8-bit scale per 16",
    "iq4_nl": "4 bits of a table, one scale per 32",
    "iq4_xs": "4 bits of a table, 6-bit scale per 32",
}
_SQNR_DB = {
    "q2_k": 10.0,
    "q3_k": 16.0,
    "q4_k": 22.5,
    "q5_k": 28.5,
    "q6_k": 34.5,
    "iq4_nl": 22.0,
    "iq4_xs": 22.0,
}


_TOGETHER = "the scales of 256 columns must be whole multiples of one float16"


class SuperBlockPacker(GGUFPacker):
    """``q2_k`` to ``q6_k``, ``iq4_xs`` and ``iq4_nl``."""

    def __init__(self, kind: GGMLType) -> None:
        self.type = kind
        self.layout = LAYOUTS[kind.name]
        self.grid = grid_of(self.layout)
        self._apart = apart(self.layout)
        self.spec = spec_of(
            kind,
            _SUMMARIES[kind.name],
            self.layout.sub,
            bits=self.layout.bits,
            sqnr_floor_db=_SQNR_DB[kind.name],
            kernel=KernelSpec(
                self.layout.bits,
                self.layout.mode,
                self.layout.sub,
                "f32" if self.layout.two_level else "f16",
                self.layout.block if self.layout.two_level else 0,
            ),
        )

    def represent(self, quantized: QuantizedTensor) -> QuantizedTensor:
        """A tensor of the same values whose scales this type can store; see :meth:`~qformats.Packer.represent`."""
        if not self.layout.two_level:
            return super().represent(quantized)
        problem = self.veto(quantized.shape)
        if problem:
            raise NotExactError(problem)
        # Sub-block by sub-block first; then together.
        found = represent(quantized, self._apart)
        parts = parts_of(self.layout, carrying(found, carried_by(quantized)))
        if parts is not None:
            return carrying(found, parts)
        joined = joined_by(self.layout, found)
        if joined is None:
            raise NotExactError(_TOGETHER)
        return joined

    def foresee(self, source: Packer, shape: Sequence[int]) -> tuple[Answer, str]:
        """Whether :meth:`represent` takes what `source` stores; see :meth:`~qformats.Packer.foresee`."""
        problem = self.veto(shape)
        if problem or not self.layout.two_level or not source.spec.level or source.grid is None:
            return super().foresee(source, shape)
        if source.name == self.name:
            return Answer.ALWAYS, ""
        answer, reason = foresee(source.grid, self._apart, (int(shape[0]), int(shape[1])))
        if answer is not Answer.ALWAYS:
            return answer, reason
        # One float16 scale for the whole block is one that the block can have.
        grid, columns = source.grid, int(shape[1])
        length = grid.block_size or columns
        alone = length % self.layout.block == 0 or length >= columns
        if alone and grid.scale_dtype == "f16" and grid.independent and not self.layout.minimum:
            return Answer.ALWAYS, ""
        return Answer.DATA, _TOGETHER

    def pack(self, quantized: QuantizedTensor) -> PackedTensor:
        """Bytes of codes and scales; both are stored unchanged.

        Raises
        ------
        ConfigError
            If the scales are no products that the type can store.
        """
        import torch

        if self.layout.two_level:
            parts = parts_of(self.layout, quantized)
            if parts is None:
                found = Described("values that are no products of a float16 per block and whole numbers")
                raise ConfigError("scale", found, f"scales as {self.name} stores them, in two levels")
        else:
            halves = quantized.scale.to("cpu", torch.float16).unsqueeze(-1)
            whole = torch.ones(quantized.scale.shape, dtype=torch.int8)
            parts = Parts(halves, whole, torch.zeros_like(whole))
        return self._packed(quantized.codes, parts)

    def _packed(self, codes: Tensor, parts: Parts) -> PackedTensor:
        import torch

        from qformats_gguf.superblocks import bytes as blockwise

        kind = self.layout
        rows, columns = codes.shape
        blocks = empty((rows, columns // kind.block * kind.size), torch.uint8)
        blockwise.pack(
            kind,
            codes.to("cpu", torch.uint8).contiguous().numpy().reshape(-1, kind.block),
            parts.halves.contiguous().view(torch.uint16).numpy().reshape(-1, 1 + kind.minimum),
            parts.scales.contiguous().numpy().reshape(-1, kind.scales),
            parts.minima.contiguous().numpy().reshape(-1, kind.scales),
            blocks.numpy().reshape(-1, kind.size),
        )
        return PackedTensor(self, (int(rows), int(columns)), {"blocks": blocks.to(codes.device)})

    def unpack(self, packed: PackedTensor) -> QuantizedTensor:
        """Codes and scales, exactly as stored; stacked matrices become rows of one."""
        import torch

        from qformats_gguf.superblocks import bytes as blockwise

        kind = self.layout
        blocks = self.blocks(packed)
        rows, columns = math.prod(packed.shape[:-1]), int(packed.shape[-1])
        count = columns // kind.block
        codes = empty((rows, columns), torch.uint8)
        halves = empty((rows, count, 1 + kind.minimum), torch.float16)
        scales = torch.ones((rows, count * kind.scales), dtype=torch.int8)
        minima = torch.zeros_like(scales)
        blockwise.unpack(
            kind,
            blocks.cpu().contiguous().numpy().reshape(-1, kind.size),
            codes.numpy().reshape(-1, kind.block),
            halves.view(torch.uint16).numpy().reshape(-1, 1 + kind.minimum),
            scales.numpy().reshape(-1, kind.scales),
            minima.numpy().reshape(-1, kind.scales),
        )
        codes, block, device = codes.to(blocks.device), (1, kind.sub), blocks.device
        table = torch.tensor(kind.table, dtype=torch.float32, device=device) if kind.table else None
        if not kind.two_level:
            return QuantizedTensor(codes, halves[..., 0].contiguous().to(device), block, codebook=table)
        parts = Parts(halves, scales, minima)
        scale, minimum = parts.expand(kind)
        return TwoLevelTensor(
            codes,
            scale.to(device),
            block,
            zero_point=kind.zero,
            minimum=None if minimum is None else minimum.to(device),
            codebook=table,
            parts=parts,
        )

    def dequantize(self, packed: PackedTensor) -> Tensor:
        """Values as float32."""
        import torch

        out = empty(packed.shape, torch.float32)
        blocks = self.blocks(packed)
        self._decode(blocks, out)
        return out.to(blocks.device)

    def dequantize_into(self, packed: PackedTensor, out: Tensor) -> None:
        """Values in memory that is there already."""
        blocks = self.blocks(packed)
        if blocks.device.type != "cpu":
            super().dequantize_into(packed, out)
            return
        self._decode(blocks, out)

    def row_products(self, packed: PackedTensor) -> RowProducts | None:
        """Products by compiled code that decodes in registers, unless there is a table."""
        from qformats_gguf import rows

        blocks = self.blocks(packed)
        stored = blocks.reshape(-1, blocks.shape[-1]).contiguous().numpy()
        return None if self.layout.table else rows.products(self.layout.name, stored)

    def _decode(self, blocks: Tensor, out: Tensor) -> None:
        from qformats.kernels.dense import as_numpy
        from qformats_gguf import rows
        from qformats_gguf.superblocks import bytes as blockwise

        stored, values = blocks.cpu().contiguous().numpy(), as_numpy(out.view(-1))
        if self.layout.table:
            blockwise.dequantize(
                self.layout, stored.reshape(-1, self.layout.size), values.reshape(-1, self.layout.block)
            )
        else:
            rows.decode(self.layout.name, stored, values.reshape(-1, int(out.shape[-1])))

    def encode_reference(self, dense: Tensor) -> PackedTensor:
        """llama.cpp's own rounding, without an importance matrix.

        Raises
        ------
        NonFiniteError
            If a weight is not finite, or so large that a block's scale is beyond float16.
        ShapeError
            If rows do not divide into blocks.
        """
        from qformats.kernels.dense import require_finite, too_large

        self.require(dense.shape)
        require_finite(dense)
        weight = dense.reshape(math.prod(dense.shape[:-1]), dense.shape[-1])
        codes, parts, beyond = search(self.layout, weight)
        if beyond:
            count = weight.numel() // self.layout.block
            raise too_large(f"{beyond} of {count} blocks need a scale beyond f16", weight)
        blocks = self._packed(codes, parts).fields["blocks"].to(dense.device)
        (shape, _), *_ = self.stored(dense.shape).values()
        return PackedTensor(self, tuple(dense.shape), {"blocks": blocks.reshape(shape)})

    def quantize_reference(self, dense: Tensor) -> QuantizedTensor:
        """llama.cpp's own rounding, from floats to codes."""
        from qformats.kernels.dense import require_finite

        assert self.grid is not None
        if dense.ndim != 2:
            return super().quantize_reference(dense)
        self.require(dense.shape)
        require_finite(dense)
        return self.grid.quantize(dense)
