"""Packers of tensor types: plain numbers, the five legacy block types, and the types that can only be decoded.

Those with scales in two levels are in :mod:`qformats_gguf.superblocks`.


Packed bytes have one field, ``blocks``: a row of whole blocks for every row of the weight. The byte layouts
are those of :mod:`qformats_gguf.types`; nibbles of byte ``j`` of a block are elements ``j`` (low) and
``j + 16`` (high), and bit ``j`` of the little-endian word ``qh`` is the fifth bit of element ``j``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from qformats import (
    AffineGrid,
    DensePacker,
    FieldSpec,
    FormatSpec,
    KernelSpec,
    PackedTensor,
    QuantizedTensor,
)
from qformats.errors import CheckpointError, ConfigError
from qformats.numbers import empty
from qformats_gguf.base import SOURCE, GGUFPacker, spec_of
from qformats_gguf.grids import AbsMaxGrid, MinMaxGrid, SignedMaxGrid
from qformats_gguf.microscaling import Mxfp4Packer
from qformats_gguf.nvfp4 import NvidiaPacker
from qformats_gguf.superblocks.layout import LAYOUTS
from qformats_gguf.superblocks.packer import SuperBlockPacker
from qformats_gguf.ternary import TERNARY, TernaryPacker
from qformats_gguf.types import REMOVED, TYPES, GGMLType

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from qformats.interfaces import RowProducts

__all__ = [
    "LISTED",
    "BlockPacker",
    "DecodeOnlyPacker",
    "GGUFPacker",
    "PlainPacker",
    "UnknownTypePacker",
    "packer_of",
]

BLOCK = 32

_PLAIN = {
    "f32": "f32",
    "f16": "f16",
    "bf16": "bf16",
    "f64": "f64",
    "i8": "i8",
    "i16": "i16",
    "i32": "i32",
    "i64": "i64",
}
_GRIDS: dict[str, AffineGrid] = {
    "q8_0": AbsMaxGrid(8, BLOCK, low=1),
    "q4_0": SignedMaxGrid(4, BLOCK),
    "q4_1": MinMaxGrid(4, BLOCK, kind="minimum"),
    "q5_0": SignedMaxGrid(5, BLOCK),
    "q5_1": MinMaxGrid(5, BLOCK, kind="minimum"),
}
_SQNR_DB = {"q8_0": 45.0, "q4_0": 21.0, "q4_1": 21.8, "q5_0": 27.0, "q5_1": 28.0}
DECODE_ONLY = (*("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"),)
"""Types that gguf-py decodes and nothing here encodes yet."""
_SUMMARIES = {
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "q8_0": "8 bits, one scale per 32",
    "q4_0": "4 bits, one signed scale per 32",
    "q4_1": "4 bits, one scale and minimum per 32",
    "q5_0": "5 bits, one signed scale per 32",
    "q5_1": "5 bits, one scale and minimum per 32",
}


class PlainPacker(DensePacker, GGUFPacker):
    """``f32``, ``f16``, ``bf16``; the other plain types are read and copied."""

    def __init__(self, kind: GGMLType) -> None:
        fields = (FieldSpec("values", ("N", "K"), _PLAIN[kind.name], "weight units"),)
        summary = _SUMMARIES.get(kind.name, f"{kind.name}, read and copied")
        spec = FormatSpec("gguf", kind.name, summary, fields, canonical=False, source=SOURCE)
        super().__init__(spec, _PLAIN[kind.name])
        self.type = kind

    def veto(self, shape: Sequence[int]) -> str | None:
        """Vectors are float32 in every file of llama.cpp: with another type it aborts when the model runs."""
        if len(shape) < 2 and self.spec.variant in ("f16", "bf16"):
            return "llama.cpp computes only with float32 vectors"
        return None

    def stored(self, shape: Sequence[int]) -> dict[str, tuple[tuple[int, ...], str]]:
        """The tensor itself."""
        assert self.dense_dtype is not None
        return {"values": (tuple(shape), self.dense_dtype)}


class DecodeOnlyPacker(GGUFPacker):
    """Types at support level 0, decoded by gguf-py."""

    def __init__(self, kind: GGMLType) -> None:
        self.type = kind
        lattice = ", points of a lattice" if kind.name.startswith(("iq1", "iq2", "iq3")) else ""
        about = f"{kind.bits_per_weight:g} bits per weight{lattice}; read-only"
        self.spec = spec_of(kind, about, canonical=False)

    def scales(self, packed: PackedTensor) -> Sequence[Tensor]:
        """Scales of the blocks; where these are not floats, ones, and NaN in place of those that may be too large."""
        import torch

        blocks = packed.fields["blocks"].reshape(-1, self.type.block_bytes)
        if self.type.name == "iq1_m":
            # The top bits of four words make up a float16 scale; the last word has its sign and part of its exponent.
            words = blocks[:, 48:56].contiguous().view(torch.int16).to(torch.int32)
            bad = ((words[:, 3] >> 12 & 7) == 7) & ((words[:, 2] >> 12 & 12) == 12)
        else:
            return super().scales(packed)
        return [torch.ones(()).where(~bad, torch.nan)]

    @property
    def readable(self) -> bool:
        """Whether gguf-py has a decoder for this type."""
        return self.type.name in DECODE_ONLY

    def dequantize(self, packed: PackedTensor) -> Tensor:
        """Values as gguf-py's decoder gives them, float32."""
        import gguf
        import numpy as np
        import torch

        blocks = self.blocks(packed)
        try:
            # Scales of a file may be infinite or NaN; so are the values then, without a warning.
            with np.errstate(all="ignore"):
                kind = gguf.GGMLQuantizationType(self.type.id)
                values = gguf.quants.dequantize(blocks.cpu().numpy(), kind)
        except (NotImplementedError, ValueError) as error:
            raise ConfigError("format", self.name, "a type that gguf-py can decode") from error
        return torch.from_numpy(values).reshape(packed.shape).to(blocks.device)


class BlockPacker(GGUFPacker):
    """``q8_0``, ``q4_0``, ``q4_1``, ``q5_0``, ``q5_1``: 32 columns share a float16 scale (and minimum)."""

    grid: AffineGrid
    on_device = True

    def __init__(self, kind: GGMLType) -> None:
        self.type = kind
        self.grid = _GRIDS[kind.name]
        mode = "minimum" if self.grid.kind == "minimum" else "affine"
        self.spec = spec_of(
            kind,
            _SUMMARIES[kind.name],
            bits=self.grid.bits,
            sqnr_floor_db=_SQNR_DB[kind.name],
            kernel=KernelSpec(self.grid.bits, mode, BLOCK, "f16"),
        )

    def pack(self, quantized: QuantizedTensor) -> PackedTensor:
        """Bytes of codes and scales; both are stored unchanged."""
        import torch

        rows, columns = quantized.shape
        if quantized.codes.device.type == "cpu":
            return self._recoded(quantized)
        codes = quantized.codes.reshape(rows, columns // BLOCK, BLOCK).to(torch.uint8)
        parts = [_bytes(quantized.scale.to(torch.float16))]
        if self.grid.kind == "minimum":
            assert quantized.minimum is not None
            parts.append(_bytes(quantized.minimum.to(torch.float16)))
        if self.grid.bits == 8:
            parts.append((codes.to(torch.int16) - 128).to(torch.int8).view(torch.uint8))
        else:
            if self.grid.bits == 5:
                fifth = (codes >> 4).to(torch.int64) << torch.arange(BLOCK, device=codes.device)
                word = fifth.sum(-1, keepdim=True)
                parts.append(((word >> torch.arange(0, 32, 8, device=codes.device)) & 255).to(torch.uint8))
            nibbles = codes & 15
            parts.append(nibbles[..., :16] | nibbles[..., 16:] << 4)
        blocks = torch.cat(parts, -1).reshape(rows, -1)
        return PackedTensor(self, (rows, columns), {"blocks": blocks})

    def unpack(self, packed: PackedTensor) -> QuantizedTensor:
        """Codes and scales, exactly as stored; stacked matrices become rows of one."""
        import torch

        columns = int(packed.shape[-1])
        rows = math.prod(packed.shape[:-1])
        blocks = self.blocks(packed)
        if blocks.device.type == "cpu":
            return self._decoded(blocks.reshape(rows, blocks.shape[-1]).contiguous(), rows, columns)
        blocks = blocks.reshape(rows, columns // BLOCK, self.type.block_bytes)
        scale, at = _halves(blocks, 0), 2
        minimum = None
        if self.grid.kind == "minimum":
            minimum, at = _halves(blocks, 2), 4
        if self.grid.bits == 8:
            codes = (blocks[..., at:].contiguous().view(torch.int8).to(torch.int16) + 128).to(torch.uint8)
        else:
            packed_codes = blocks[..., -16:]
            codes = torch.cat([packed_codes & 15, packed_codes >> 4], -1)
            if self.grid.bits == 5:
                spread = blocks[..., at : at + 4].repeat_interleave(8, -1)
                bit = torch.arange(BLOCK, device=blocks.device, dtype=torch.uint8) % 8
                codes = codes | ((spread >> bit) & 1) << 4
        zero = 0 if self.grid.kind == "minimum" else self.grid.center
        codes = codes.reshape(rows, columns)
        return QuantizedTensor(codes, scale, (1, BLOCK), zero_point=zero, minimum=minimum)

    def _recoded(self, quantized: QuantizedTensor) -> PackedTensor:
        """Pack by the compiled kernel."""
        import torch

        from qformats_gguf import recode

        rows, columns = quantized.shape
        blocks = empty((rows, columns // BLOCK * self.type.block_bytes), torch.uint8)
        minimum = None
        if self.grid.kind == "minimum":
            assert quantized.minimum is not None
            minimum = _half_bits(quantized.minimum)
        codes = quantized.codes.to(torch.uint8).contiguous().numpy()
        recode.pack(self.type.name, codes, _half_bits(quantized.scale), minimum, blocks.numpy())
        return PackedTensor(self, (rows, columns), {"blocks": blocks})

    def _decoded(self, blocks: Tensor, rows: int, columns: int) -> QuantizedTensor:
        """Unpack by the compiled kernel."""
        import torch

        from qformats_gguf import recode

        count = columns // BLOCK
        codes = empty((rows, columns), torch.uint8)
        scale = empty((rows, count), torch.float16)
        minimum = torch.empty_like(scale) if self.grid.kind == "minimum" else None
        second = None if minimum is None else _half_bits(minimum)
        recode.unpack(self.type.name, blocks.numpy(), codes.numpy(), _half_bits(scale), second)
        zero = 0 if minimum is not None else self.grid.center
        return QuantizedTensor(codes, scale, (1, BLOCK), zero_point=zero, minimum=minimum)

    def dequantize(self, packed: PackedTensor) -> Tensor:
        """Values as float32, by the compiled kernel on a CPU."""
        import torch

        if self.blocks(packed).device.type != "cpu":
            return self.unpack(packed).dequantize().reshape(packed.shape)

        out = empty(packed.shape, torch.float32)
        self.dequantize_into(packed, out)
        return out

    def dequantize_into(self, packed: PackedTensor, out: Tensor) -> None:
        """Values in memory that is there already, by the compiled kernel on a CPU."""
        blocks = self.blocks(packed)
        if blocks.device.type != "cpu":
            super().dequantize_into(packed, out)
            return
        from qformats.kernels.dense import as_numpy
        from qformats_gguf import kernels

        rows, columns = math.prod(packed.shape[:-1]), int(packed.shape[-1])
        stored = blocks.reshape(rows, blocks.shape[-1]).contiguous().numpy()
        kernels.dequantize(self.type.name, stored, as_numpy(out.view(rows, columns)))

    def row_products(self, packed: PackedTensor) -> RowProducts | None:
        """Products by a compiled kernel that decodes in registers."""
        from qformats_gguf import rows

        blocks = self.blocks(packed)
        return rows.products(self.type.name, blocks.reshape(-1, blocks.shape[-1]).contiguous().numpy())

    def encode_reference(self, dense: Tensor) -> PackedTensor:
        """llama.cpp's own rounding, from floats to packed bytes in one pass; no importance matrix.

        Raises
        ------
        NonFiniteError
            If a weight is not finite, or so large that a block's scale is beyond float16.
        ShapeError
            If rows do not divide into blocks.
        """
        import torch

        self.require(dense.shape)
        weight = dense.reshape(math.prod(dense.shape[:-1]), dense.shape[-1]).contiguous()
        (shape, _), *_ = self.stored(dense.shape).values()
        if dense.device.type != "cpu" or dense.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            plain = super().encode_reference(weight)
            return PackedTensor(self, tuple(dense.shape), {"blocks": plain.fields["blocks"].reshape(shape)})
        from qformats.kernels.dense import as_numpy, refuse
        from qformats_gguf import kernels

        blocks = empty((weight.shape[0], shape[-1]), torch.uint8)
        outcome = kernels.quantize(self.type.name, as_numpy(weight), blocks.numpy())
        refuse(outcome, weight, weight.numel() // BLOCK, "f16")
        return PackedTensor(self, tuple(dense.shape), {"blocks": blocks.reshape(shape)})

    def quantize_reference(self, dense: Tensor) -> QuantizedTensor:
        """llama.cpp's own rounding, from floats to codes; on a CPU without a detour through blocks."""
        import torch

        known = (torch.float32, torch.float16, torch.bfloat16)
        if dense.ndim != 2 or dense.device.type != "cpu" or dense.dtype not in known:
            return super().quantize_reference(dense)
        self.require(dense.shape)
        from qformats.kernels.dense import as_numpy, refuse
        from qformats_gguf import kernels

        weight, has_minimum = dense.contiguous(), self.grid.kind == "minimum"
        codes = empty(weight.shape, torch.uint8)
        halves = empty((weight.shape[0], weight.shape[1] // BLOCK, 1 + has_minimum), torch.float16)
        outcome = kernels.quantize_codes(self.type.name, as_numpy(weight), codes.numpy(), halves.numpy())
        refuse(outcome, weight, weight.numel() // BLOCK, "f16")
        scale, *more = (part.contiguous() for part in halves.unbind(-1))
        zero = 0 if has_minimum else self.grid.center
        minimum = more[0] if has_minimum else None
        return QuantizedTensor(codes, scale, (1, BLOCK), zero_point=zero, minimum=minimum)


class UnknownTypePacker(GGUFPacker):
    """A tensor type newer than this program, or one that llama.cpp has removed: such tensors can only be listed."""

    def __init__(self, type_id: int) -> None:
        removed = REMOVED.get(type_id)
        about = "a type that this version does not know" if removed is None else "a type that was removed"
        self.spec = FormatSpec("gguf", removed or f"type-{type_id}", about, (), canonical=False)
        self.type_id = type_id

    def scales(self, packed: PackedTensor) -> Sequence[Tensor]:
        """None are known."""
        return []

    @property
    def readable(self) -> bool:
        """Its blocks are not known here."""
        return False

    def row_step(self, shape: Sequence[int]) -> int:
        """Rows cannot be taken apart."""
        return 0

    def veto(self, shape: Sequence[int]) -> str | None:
        """No shape is written in it."""
        return "its blocks are not known to this version"

    def stored(self, shape: Sequence[int]) -> dict[str, tuple[tuple[int, ...], str]]:
        """Refuse: the bytes per row are not known."""
        raise ConfigError("tensor type", self.spec.variant, "a type that this version knows")

    def refusal(self, file: Path, name: str) -> CheckpointError:
        """What to tell whoever wants to read such a tensor."""
        if self.type_id in REMOVED:
            hint = (
                "it was removed from llama.cpp: quantize the original model again, or download another file"
            )
        else:
            hint = "a newer qformats may read it; everything else in the file can be read"
        found = f"has type {self.type_id} ({self.spec.variant})"
        return CheckpointError(file, found, "a type that this version knows", tensor=name, hint=hint)


@cache
def packer_of(kind: GGMLType) -> GGUFPacker:
    """Packer of a tensor type."""
    if kind.name in _PLAIN:
        return PlainPacker(kind)
    if kind.name in _GRIDS:
        return BlockPacker(kind)
    if kind.name in TERNARY:
        return TernaryPacker(kind)
    if kind.name == "mxfp4":
        return Mxfp4Packer(kind)
    if kind.name == "nvfp4":
        return NvidiaPacker(kind)
    return SuperBlockPacker(kind) if kind.name in LAYOUTS else DecodeOnlyPacker(kind)


LISTED = tuple(
    packer_of(kind)
    for name in ("f32", "f16", "bf16", *_GRIDS, *sorted(LAYOUTS), "mxfp4", "nvfp4", *TERNARY, *DECODE_ONLY)
    for kind in TYPES.values()
    if kind.name == name
)
"""Packers of the types that can be written, then of those that can only be read."""


def _half_bits(values: Tensor) -> NDArray[np.uint16]:
    """Bits of float16 numbers; a view of a float16 tensor."""
    import numpy as np
    import torch

    bits: NDArray[np.uint16] = values.to(torch.float16).contiguous().numpy().view(np.uint16)
    return bits


def _bytes(halves: Tensor) -> Tensor:
    """Two bytes of each float16, as a new last dimension."""
    import torch

    return halves.contiguous().unsqueeze(-1).view(torch.uint8)


def _halves(blocks: Tensor, at: int) -> Tensor:
    """Float16 field at byte `at` of each block."""
    import torch

    return blocks[..., at : at + 2].contiguous().view(torch.float16).squeeze(-1)
