"""A plugin that brings one of each."""

from qformats import (
    AffineGrid,
    Family,
    FieldSpec,
    FormatSpec,
    Loader,
    ModelClass,
    PackedTensor,
    Packer,
    QuantizedTensor,
    Quantizer,
    hookimpl,
)


class Bytes(Packer):
    spec = FormatSpec(
        "good",
        "byte",
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


class Good(Family):
    name = "good"
    packers = (Bytes(),)


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


class Renamed(ModelClass):
    """Llama under another name."""

    name = "good-llama"

    def config_class(self):
        from transformers import LlamaConfig

        return LlamaConfig

    def model_class(self):
        from transformers import LlamaForCausalLM

        return LlamaForCausalLM

    def text_prefix(self, config):
        return (config["bos_token_id"],)


@hookimpl
def qformats_register_models():
    return [Renamed]


@hookimpl
def qformats_register_families():
    return [Good]


@hookimpl
def qformats_register_quantizers():
    return [Towards]


@hookimpl
def qformats_register_loaders():
    return [NeverLoader]
