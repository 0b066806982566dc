"""A plugin that claims a format which is taken."""

from qformats import (
    AffineGrid,
    Family,
    FieldSpec,
    FormatSpec,
    PackedTensor,
    Packer,
    QuantizedTensor,
    hookimpl,
)


class Bytes(Packer):
    spec = FormatSpec(
        "gguf",
        "q4_0",
        "one byte per code",
        (FieldSpec("weight", ("N", "K"), "u8"), FieldSpec("scale", ("N", "K / 16"), "f16")),
        bits=8,
        block_size=16,
    )
    grid = AffineGrid(8, 16)

    def pack(self, quantized):
        fields = {"weight": quantized.codes, "scale": quantized.scale.half()}
        return PackedTensor(self, quantized.shape, fields)

    def unpack(self, packed):
        return QuantizedTensor(packed.fields["weight"], packed.fields["scale"], (1, 16), zero_point=128)


class Thief(Family):
    name = "gguf"
    packers = (Bytes(),)


@hookimpl
def qformats_register_families():
    return [Thief]
