"""A plugin that brings one of each."""

from qformats import (
    AffineGrid,
    FieldSpec,
    FormatSpec,
    Loader,
    PackedTensor,
    Packer,
    QuantizedTensor,
    Quantizer,
    hookimpl,
)
from qformats.errors import UnknownFormatError


class GoodPacker(Packer):
    family = "good"
    default_variant = "byte"
    container = "huggingface"

    @classmethod
    def variants(cls):
        return ["byte"]

    @classmethod
    def parse(cls, variant):
        if variant != "byte":
            raise UnknownFormatError(f"good:{variant}", ["good:byte"])
        packer = cls()
        fields = (FieldSpec("weight", ("N", "K"), "u8"), FieldSpec("scale", ("N", "K / 16"), "f16"))
        packer.spec = FormatSpec("good", "byte", "one byte a code", fields, bits=8, block_size=16)
        packer.grid = AffineGrid(8, 16)
        return packer

    def pack(self, quantized):
        fields = {"weight": quantized.codes, "scale": quantized.scale.half()}
        return PackedTensor(self.name, quantized.shape, fields)

    def unpack(self, packed):
        return QuantizedTensor(packed.fields["weight"], packed.fields["scale"], (1, 16), zero_point=128)


class Towards(Quantizer):
    name = "good-quantizer"
    summary = "importance that grows along the row"

    def quantize(self, weight, packer, importance=None):
        return packer.grid.quantize(weight, weight.new_ones(weight.shape[1]).cumsum(0))


class NeverLoader(Loader):
    name = "good-loader"

    def detect(self, path):
        return False

    def open(self, path, options):
        raise NotImplementedError


@hookimpl
def qformats_register_packers():
    return [GoodPacker]


@hookimpl
def qformats_register_quantizers():
    return [Towards]


@hookimpl
def qformats_register_loaders():
    return [NeverLoader]
