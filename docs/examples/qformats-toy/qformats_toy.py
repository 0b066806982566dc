"""A third-party format for qformats: six bits per weight, one scale per row.

``toy:int6`` stores ``weight``, codes 0 to 63 as one little-endian bit stream per row, and ``weight_scale``, float16.
The value of a code is ``scale * (code - 32)``.
"""

from qformats import AffineGrid, Family, FieldSpec, FormatSpec, KernelSpec, PackedTensor, Packer, hookimpl
from qformats.errors import ConfigError
from qformats.numbers import QuantizedTensor, pack_bits, unpack_bits

BITS = 6


class ToyPacker(Packer):
    spec = FormatSpec(
        family="toy",
        variant="int6",
        summary="6 bits, one scale per row",
        fields=(
            FieldSpec("weight", ("N", "K * 6 / 8"), "u8", "packed codes"),
            FieldSpec("weight_scale", ("N",), "f16", "weight units per step"),
        ),
        bits=BITS,
        block_size=0,
        source="qformats-toy:README.md",
        kernel=KernelSpec(BITS, "affine", 0, "f16"),
    )
    grid = AffineGrid(BITS, block_size=0)

    def pack(self, quantized: QuantizedTensor) -> PackedTensor:
        codes, scale = pack_bits(quantized.codes, BITS), quantized.scale.half().flatten()
        return PackedTensor(self, quantized.shape, {"weight": codes, "weight_scale": scale})

    def unpack(self, packed: PackedTensor) -> QuantizedTensor:
        fields = self.checked(packed).fields
        codes = unpack_bits(fields["weight"], BITS, packed.shape[1])
        scale = fields["weight_scale"].unsqueeze(1)
        return QuantizedTensor(codes, scale, (1, packed.shape[1]), zero_point=32)


class Toy(Family):
    name = "toy"
    packers = (ToyPacker(),)

    def detect(self, quantization_config):
        if quantization_config.get("quant_method") != "toy":
            return None
        if quantization_config.get("bits") != BITS:
            raise ConfigError("bits of a toy folder", quantization_config.get("bits"), str(BITS))
        return self.packers[0]

    def to_config(self, packer, **_):
        return {"quant_method": "toy", "bits": BITS}


@hookimpl
def qformats_register_families():
    return [Toy]
