"""The packer of ``mxfp4-pack-quantized``: floats of 4 bits (E2M1), and a power of two for 32 of them.

A byte holds the elements ``2 j`` (low) and ``2 j + 1``; a scale is stored as its exponent, ``2 ** (e - 127)``. Levels
here are twice those of E2M1 and scales half, as in GGUF's type, so that the same numbers have the same codes in both.

Source: compressed-tensors:src/compressed_tensors/compressors/mxfp4/base.py, mx_utils.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qformats import (
    FieldSpec,
    FormatSpec,
    GridParams,
    KernelSpec,
    PackedTensor,
    Packer,
    QuantizedTensor,
)
from qformats.errors import ConfigError, Described
from qformats.numbers import (
    E2M1,
    Float4Grid,
    RuledGrid,
    expand_blocks,
    half_powers,
    nearest_power,
    stored_exponents,
)
from qformats_compressed_tensors.integers import FAMILY

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MicroscalingPacker"]

BLOCK = 32
_MIDDLES = ((0.5, False), (1.5, True), (2.5, False), (3.5, True), (5.0, False), (7.0, True), (10.0, False))
"""Between neighbouring magnitudes, and whether the middle itself goes up: to the even mantissa."""
_NAN = 255
"""The exponent that stands for NaN."""


@dataclass(frozen=True)
class MicroscalingGrid(RuledGrid):
    """E2M1 times a power of two."""

    def storable(self, values: Tensor) -> Tensor:
        """Nearest powers of two; the largest exponent stands for NaN."""
        return nearest_power(values)

    def reference(self, weight: Tensor) -> tuple[Tensor, GridParams]:
        """Codes and scales by the library's rule: the power of two that is a quarter of the largest magnitude.

        From 1.75 times a power of two on, magnitudes count as the next one.
        """
        import torch

        weight = weight.float()
        largest = self.blocks(weight).abs().amax(-1)
        # Of the bits of a float32: an eighth of the power of two is added, and what is below it dropped.
        power = ((largest.view(torch.int32) + (1 << 21)) >> 23) - 127
        scale = torch.exp2((power - 3).clamp(-128, 126).to(torch.float64)).to(torch.float32)
        params = GridParams(scale)
        return self.encode(weight, params), params

    def encode(self, weight: Tensor, params: GridParams) -> Tensor:
        """Codes of the nearest levels, ties to even mantissas."""
        import torch

        shape = (int(weight.shape[0]), int(weight.shape[1]))
        scale = expand_blocks(params.scale.double(), shape, (1, self.columns(weight)))
        unit = weight.double() / scale
        size, place = unit.abs(), torch.zeros_like(weight, dtype=torch.uint8)
        for middle, up in _MIDDLES:
            place += (size >= middle) if up else (size > middle)
        return torch.where(unit < 0, 7 - place, 7 + place)


class MicroscalingPacker(Packer):
    """``mxfp4-pack-quantized``.

    Examples
    --------
    >>> import torch
    >>> from qformats_compressed_tensors.microscaling import MicroscalingPacker
    >>> packed = MicroscalingPacker().encode_reference(torch.linspace(-6, 6, 32).view(1, 32))
    >>> packed.fields["weight_scale"].tolist(), tuple(packed.fields["weight_packed"].shape)
    ([[127]], (1, 16))
    """

    layout = "mxfp4-pack-quantized"
    grid = MicroscalingGrid(E2M1, BLOCK, "f32")
    spec = FormatSpec(
        FAMILY,
        "mxfp4",
        "floats of 4 bits (E2M1), a power of two per 32 columns",
        (
            FieldSpec("weight_packed", ("N", "K / 2"), "u8", "packed codes"),
            FieldSpec("weight_scale", ("N", f"K / {BLOCK}"), "u8", "exponents of scales"),
        ),
        bits=4,
        block_size=BLOCK,
        source="compressed-tensors:src/compressed_tensors/compressors/mxfp4/base.py",
        sqnr_floor_db=18.0,
        kernel=KernelSpec(4, "float", BLOCK, "f32"),
    )

    def scales(self, packed: PackedTensor) -> Sequence[Tensor]:
        """Ones, and NaN in place of scales of which the largest times a code are beyond float32."""
        import torch

        exponents = packed.fields["weight_scale"]
        return [torch.ones((), device=exponents.device).where(exponents < 253, torch.nan)]

    def from_stored(self, fields: Mapping[str, Tensor], shape: tuple[int, int]) -> PackedTensor:
        """Codes and exponents, checked for NaN.

        Raises
        ------
        ConfigError
            If an exponent stands for NaN.
        """
        import torch

        scale = fields["weight_scale"].contiguous().view(torch.uint8)
        kept = {"weight_packed": fields["weight_packed"], "weight_scale": scale}
        if bool((kept["weight_scale"] == _NAN).any()):
            found = Described("exponents of 255, which stand for NaN")
            raise ConfigError("weight_scale", found, "finite scales")
        return PackedTensor(self, shape, kept)

    def pack(self, quantized: QuantizedTensor) -> PackedTensor:
        """Bytes of codes and scales; both are stored unchanged."""
        self.require(quantized.shape)
        self.grid.validate(quantized)
        stored = Float4Grid.stored(quantized.codes)
        exponents = stored_exponents(quantized.scale)
        fields = {"weight_packed": stored[:, ::2] | stored[:, 1::2] << 4, "weight_scale": exponents}
        return PackedTensor(self, quantized.shape, fields)

    def unpack(self, packed: PackedTensor) -> QuantizedTensor:
        """Codes and scales; the code of -0 becomes that of 0."""
        import torch

        fields = self.checked(packed).fields
        both = fields["weight_packed"]
        stored = torch.stack([both & 15, both >> 4], -1).flatten(1)
        codes = Float4Grid.places(stored)
        scale = half_powers(fields["weight_scale"])
        return QuantizedTensor(codes, scale, (1, BLOCK), codebook=self.grid.table(codes))
