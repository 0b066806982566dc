"""Every width, shape and order against AutoGPTQ's own layers, and pack against unpack."""

import warnings

import pytest
import torch
from gptq.cases import BITS, located, name, weights

import qformats
from qformats.errors import ConfigError, ShapeError
from qformats.numbers.dtypes import dtype_name
from qformats_gptq.family import GPTQFamily


def their_layer(auto_gptq, quantized, bits, group, old):
    """AutoGPTQ's layer, packed by AutoGPTQ from values, scales and zero points."""
    rows, columns = quantized.shape
    linear = torch.nn.Linear(columns, rows, bias=False)
    linear.weight.data = quantized.dequantize()
    kind = auto_gptq.old if old else auto_gptq.layer
    layer = kind(bits, group or -1, columns, rows, False, weight_dtype=torch.float32)
    order = quantized.g_idx
    if order is None:
        order = (torch.arange(columns) // (group or columns)).int()
    zero = torch.as_tensor(quantized.zero_point).expand(quantized.scale.shape).float().clone()
    layer.pack(linear, quantized.scale.float().clone(), zero, order)
    return layer


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [0, 32, 64, 128])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("old", "permuted", "shape"),
    [
        (True, False, (64, 256)),
        (False, False, (32, 32)),
        (False, False, (96, 160)),
        (False, True, (64, 256)),
        (False, True, (32, 224)),
    ],
)
def test_words_and_outputs_are_those_of_auto_gptq(bits, group, symmetric, old, permuted, shape, auto_gptq):
    permuted = permuted and group != 0
    quantized = weights(bits, group, shape, symmetric, permuted)
    layer = their_layer(auto_gptq, quantized, bits, group, old)
    ours = qformats.pack(quantized, name(bits, group, symmetric, permuted))
    assert torch.equal(ours.fields["qweight"], layer.qweight)
    assert torch.equal(ours.fields["scales"].float(), layer.scales)
    if symmetric:
        assert torch.equal(ours.fields["qzeros"], layer.qzeros)
    theirs = {
        "qweight": layer.qweight,
        "qzeros": layer.qzeros,
        "scales": layer.scales.half(),
        "g_idx": ours.fields["g_idx"],
    }
    config = {"bits": bits, "group_size": group or -1, "sym": symmetric, "desc_act": permuted}
    with warnings.catch_warnings():
        # Random zero points are not those of weights around zero.
        warnings.filterwarnings("ignore", "GPTQ weights are far from zero")
        found, found_shape, packed = located(theirs, config)
    assert (found, found_shape) == (ours.format, shape)
    for field, value in ours.fields.items():
        assert torch.equal(packed.fields[field], value), field
    inputs = torch.randn(5, shape[1], generator=torch.Generator().manual_seed(1))
    wanted = layer(inputs)
    outputs = inputs @ packed.dequantize().t()
    assert float((outputs - wanted).abs().max()) <= 1e-6 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [0, 32, 48, 128, 1024])
@pytest.mark.parametrize("bits", BITS)
def test_pack_and_unpack_are_inverse(bits, group, symmetric, permuted):
    permuted = permuted and 0 < group < 192
    quantized = weights(bits, group, (32, 192), symmetric, permuted, least=0)
    packer = qformats.packer(name(bits, group, symmetric, permuted))
    packed = qformats.pack(quantized, packer.name)
    assert {f: (tuple(v.shape), dtype_name(v.dtype)) for f, v in packed.fields.items()} == packer.stored(
        (32, 192)
    )
    back = packed.unpack()
    assert torch.equal(back.codes, quantized.codes)
    assert torch.equal(back.scale, quantized.scale)
    assert torch.equal(torch.as_tensor(back.zero_point), torch.as_tensor(quantized.zero_point))
    assert torch.equal(packed.dequantize(), quantized.dequantize())
    assert (back.g_idx is not None) == permuted
    again = packer.pack(packer.represent(back))
    assert all(torch.equal(again.fields[field], value) for field, value in packed.fields.items())


@pytest.mark.parametrize("bits", BITS)
def test_known_words(bits):
    """Zero points of symmetric weights are the words that are in every such file."""
    words = {2: 0x55555555, 4: 0x77777777, 8: 0x7F7F7F7F}
    packed = qformats.pack(weights(bits, 32), name(bits, 32))
    assert packed.fields["qzeros"].shape == (6, 64 * bits // 32)
    if bits in words:
        assert bool((packed.fields["qzeros"] == words[bits]).all())
    else:
        stream = sum(3 << 3 * place for place in range(32)).to_bytes(12, "little")
        assert packed.fields["qzeros"].numpy().tobytes() == stream * 12
    codes = packed.unpack().codes.long()
    for column, row in ((0, 0), (10, 3), (21, 7), (31, 5), (191, 63)):
        first, shift = divmod(column * bits, 32)
        word = packed.fields["qweight"][:, row].long() & 0xFFFFFFFF
        value = int(word[first]) >> shift
        if shift + bits > 32:
            value |= int(word[first + 1]) << (32 - shift)
        assert value & ((1 << bits) - 1) == int(codes[row, column])


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_scales_of_other_dtypes_are_kept(dtype):
    quantized = weights(4, 32)
    wide = {"bf16": torch.bfloat16, "f32": torch.float32}[dtype]
    scale = (quantized.scale.float() * 1.01).to(wide)
    fields = dict(qformats.pack(quantized, "gptq:4bit-32g").fields) | {"scales": scale.t().contiguous()}
    found, _, packed = located(fields, {"bits": 4, "group_size": 32, "sym": True})
    assert found == f"gptq:4bit-32g-{dtype}"
    assert torch.equal(packed.unpack().scale.float(), scale.float())
    assert torch.equal(packed.dequantize(), packed.unpack().dequantize())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_the_rule_of_auto_gptq(bits, symmetric, auto_gptq):
    """Scales are theirs, rounded once; few codes differ, since theirs are chosen before the scale is rounded."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(64, 1024, generator=generator) * 0.02
    weight[3, :128] = 0
    weight[4] *= 0.1
    weight[5, 7] = 3.0
    quantized = qformats.quantize(weight, name(bits, 128, symmetric))
    rule = auto_gptq.quantizer()
    rule.configure(bits, perchannel=True, sym=symmetric, mse=False)
    codes_differ = zeros_differ = 0
    for group in range(8):
        columns = slice(group * 128, group * 128 + 128)
        rule.find_params(weight[:, columns], weight=True)
        assert torch.equal(quantized.scale[:, group], rule.scale.flatten().half())
        zero = torch.as_tensor(quantized.zero_point).expand(64, 8)[:, group]
        same = zero == rule.zero.flatten()
        zeros_differ += int((~same).sum())
        codes = (weight[:, columns] / rule.scale).round() + rule.zero
        other = codes.clamp(0, (1 << bits) - 1) != quantized.codes[:, columns]
        codes_differ += int(other[same].sum())
    # A zero point lies as near to the middle between two as the scale is wide in float16.
    assert zeros_differ <= (0 if symmetric else 16)
    assert codes_differ <= 0.01 * weight.numel()


def test_a_symmetric_group_without_negative_weights_keeps_its_range():
    weight = torch.linspace(0.1, 1.5, 128).repeat(32, 1)
    values = qformats.quantize(weight, "gptq:4bit-128g").dequantize()
    assert float((values - weight).abs().max()) <= 0.11


@pytest.mark.filterwarnings("ignore:. of 64 rows became zeros:UserWarning")
def test_extreme_weights():
    weight = torch.zeros(64, 64)
    weight[1] = 6e-8
    weight[2] = 1e-7 * torch.randn(64)
    weight[3, 5] = 60000.0
    weight[4] = -1.0
    for variant in ("4bit-32g", "4bit-32g-asym", "8bit--1g", "2bit-64g-asym", "3bit-32g"):
        quantized = qformats.quantize(weight, f"gptq:{variant}")
        packed = qformats.pack(quantized, f"gptq:{variant}")
        assert torch.equal(packed.dequantize(), quantized.dequantize())
        assert bool((quantized.dequantize()[0] == 0).all())
        error = (quantized.dequantize() - weight).abs()
        assert float(error[4].max()) < 0.2 if "2bit" not in variant else float(error[4].max()) < 0.5
    with pytest.raises(qformats.errors.NonFiniteError, match="scale beyond f16"):
        qformats.quantize(weight * 1e6, "gptq:2bit-32g")


def test_what_cannot_be_packed():
    packer = qformats.packer("gptq:4bit-32g")
    quantized = weights(4, 32)
    codes = quantized.codes.clone()
    codes[0, :2] = torch.tensor([0, 31], dtype=torch.uint8)
    beyond = qformats.QuantizedTensor(codes, quantized.scale, (1, 32), zero_point=8)
    with pytest.raises(ConfigError, match=r"codes: found '\[0, 31\]'"):
        packer.pack(beyond)
    with pytest.raises(ConfigError, match="8 everywhere"):
        packer.pack(weights(4, 32, symmetric=False))
    with pytest.raises(ConfigError, match="block_size"):
        packer.pack(weights(4, 64))
    with pytest.raises(ConfigError, match="Use the variant with -actorder"):
        packer.pack(weights(4, 32, permuted=True))
    with pytest.raises(ShapeError, match="40 columns are not a multiple of 32"):
        qformats.pack(qformats.quantize(torch.zeros(32, 40), "gptq:4bit-32g"), "gptq:4bit-32g")
    with pytest.raises(ShapeError, match="33 outputs"):
        packer.encode_reference(torch.randn(33, 64))
    with pytest.raises(qformats.errors.UnknownFormatError):
        qformats.packer("gptq:5bit-128g")
    for wrong in (
        "4bit-0g",
        "4bit-128g-sym-asym",
        "4bit-128g-actorder-actorder",
        "4bit-128",
        "4bit-128g-f16-bf16",
    ):
        with pytest.raises(qformats.errors.UnknownFormatError):
            qformats.packer(f"gptq:{wrong}")
    assert qformats.packer("gptq:4BIT-128g-sym-f16").name == "gptq:4bit-128g"
    assert qformats.packer("gptq:4bit-128g-asym-actorder").name == "gptq:4bit-128g-actorder-asym"
    assert qformats.packer("gptq").name == "gptq:4bit-128g"


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("columns", [128, 192])
def test_weighted_columns(symmetric, columns):
    """The weighted fit of the framework works with a short last group too."""
    weight = torch.randn(32, columns, generator=torch.Generator().manual_seed(12))
    importance = torch.rand(columns, generator=torch.Generator().manual_seed(13)) ** 4
    grid = qformats.packer(name(3, 128, symmetric)).grid

    def loss(quantized):
        grid.validate(quantized)
        return float((importance * (quantized.dequantize() - weight).square()).sum())

    assert loss(grid.quantize(weight, importance)) < loss(grid.quantize(weight))


def test_names_that_are_listed():
    variants = GPTQFamily().variants()
    assert len(variants) == 23
    assert all(qformats.packer(f"gptq:{variant}").spec.variant == variant for variant in variants)
