"""A third-party format for qformats: six bits a weight, one scale a row.

``toy:int6`` stores for a weight of ``[N, K]``

- ``weight``, uint8 ``(N, ceil(K * 6 / 8))``: codes 0 to 63 as one little-endian bit stream a row;
- ``weight_scale``, float16 ``(N,)``: weight units a step.

The value of a code is ``scale * (code - 32)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qformats import (
    AffineGrid,
    FieldSpec,
    FormatSpec,
    KernelSpec,
    PackedTensor,
    Packer,
    QuantizedTensor,
    hookimpl,
)
from qformats.errors import ConfigError, UnknownFormatError
from qformats.numbers.bitpack import pack_bits, unpack_bits

BITS = 6


class ToyPacker(Packer):
    """The family ``toy``, with the single variant ``int6``."""

    family = "toy"
    default_variant = "int6"
    container = "huggingface"

    spec = FormatSpec(
        family="toy",
        variant="int6",
        summary="6 bits, a scale per row",
        fields=(
            FieldSpec("weight", ("N", "K * 6 / 8"), "u8", "packed codes"),
            FieldSpec("weight_scale", ("N",), "f16", "weight units a step"),
        ),
        bits=BITS,
        block_size=0,
        source="qformats-toy:README.md",
        # Codes of six bits around a zero point, one float16 scale a row: the shared GPU kernel runs that.
        kernel=KernelSpec(BITS, "affine", 0, "f16"),
    )
    grid = AffineGrid(BITS, block_size=0)

    @classmethod
    def variants(cls) -> Sequence[str]:
        return ("int6",)

    @classmethod
    def parse(cls, variant: str) -> Packer:
        if variant != "int6":
            raise UnknownFormatError(f"toy:{variant}", ["toy:int6"])
        return cls()

    def pack(self, quantized: QuantizedTensor) -> PackedTensor:
        """Bytes of codes and scales; the framework has checked that they lie on the grid."""
        fields = {
            "weight": pack_bits(quantized.codes, BITS),
            "weight_scale": quantized.scale.half().flatten(),
        }
        return PackedTensor(self.name, quantized.shape, fields)

    def unpack(self, packed: PackedTensor) -> QuantizedTensor:
        """Codes and scales, exactly as stored."""
        columns = packed.shape[1]
        codes = unpack_bits(packed.fields["weight"], BITS, columns)
        scale = packed.fields["weight_scale"].unsqueeze(1)
        return QuantizedTensor(codes, scale, (1, columns), zero_point=32)

    # In a Hugging Face folder, config.json says which format the weights are in, and what the shapes do not tell.

    @classmethod
    def detect(cls, quantization_config: Mapping[str, Any]) -> Packer | None:
        if quantization_config.get("quant_method") != "toy":
            return None
        if quantization_config.get("bits") != BITS:
            raise ConfigError("bits of a toy folder", quantization_config.get("bits"), str(BITS))
        return cls()

    def to_config(
        self, *, dense_modules: Sequence[str] = (), packed_modules: Sequence[str] = (), dtype: str = "float32"
    ) -> dict[str, Any]:
        return {"quant_method": "toy", "bits": BITS}


@hookimpl
def qformats_register_packers() -> list[type[Packer]]:
    return [ToyPacker]
