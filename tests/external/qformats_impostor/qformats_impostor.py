"""A plugin under the name of a built-in one."""

from qformats import AffineGrid, FieldSpec, FormatSpec, PackedTensor, Packer, QuantizedTensor, hookimpl
from qformats.errors import UnknownFormatError


class Impostor(Packer):
    family = "impostor"
    default_variant = "x"
    container = "huggingface"

    @classmethod
    def variants(cls):
        return ["x"]

    @classmethod
    def parse(cls, variant):
        if variant != "x":
            raise UnknownFormatError(f"impostor:{variant}", ["impostor:x"])
        packer = cls()
        fields = (FieldSpec("weight", ("N", "K"), "u8"), FieldSpec("scale", ("N", "K / 16"), "f16"))
        packer.spec = FormatSpec("impostor", "x", "one byte a code", fields, bits=8, block_size=16)
        packer.grid = AffineGrid(8, 16)
        return packer

    def pack(self, quantized):
        fields = {"weight": quantized.codes, "scale": quantized.scale.half()}
        return PackedTensor(self.name, quantized.shape, fields)

    def unpack(self, packed):
        return QuantizedTensor(packed.fields["weight"], packed.fields["scale"], (1, 16), zero_point=128)


@hookimpl
def qformats_register_packers():
    return [Impostor]
