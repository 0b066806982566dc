"""A plugin that claims a format which is taken."""

from qformats import AffineGrid, FieldSpec, FormatSpec, PackedTensor, Packer, QuantizedTensor, hookimpl
from qformats.errors import UnknownFormatError


class Thief(Packer):
    family = "gguf"
    default_variant = "q4_0"
    container = "huggingface"

    @classmethod
    def variants(cls):
        return ["q4_0"]

    @classmethod
    def parse(cls, variant):
        if variant != "q4_0":
            raise UnknownFormatError(f"gguf:{variant}", ["gguf:q4_0"])
        packer = cls()
        fields = (FieldSpec("weight", ("N", "K"), "u8"), FieldSpec("scale", ("N", "K / 16"), "f16"))
        packer.spec = FormatSpec("gguf", "q4_0", "one byte a code", fields, bits=8, block_size=16)
        packer.grid = AffineGrid(8, 16)
        return packer

    def pack(self, quantized):
        fields = {"weight": quantized.codes, "scale": quantized.scale.half()}
        return PackedTensor(self.name, quantized.shape, fields)

    def unpack(self, packed):
        return QuantizedTensor(packed.fields["weight"], packed.fields["scale"], (1, 16), zero_point=128)


@hookimpl
def qformats_register_packers():
    return [Thief]
