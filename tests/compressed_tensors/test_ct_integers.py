"""Integers: the library's own bytes and values, and modules as its folders hold them."""

from __future__ import annotations

import pytest
import torch

import qformats
from qformats.errors import ConfigError, UnknownFormatError
from qformats.interfaces import ModuleFields
from qformats.numbers import dtype_name
from qformats_compressed_tensors.family import CompressedTensors

ROWS, COLUMNS = 48, 192
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


def weights(seed=0):
    weight = torch.randn((ROWS, COLUMNS), generator=torch.Generator().manual_seed(seed)) * 0.05
    weight[1] = weight[1].abs() + 0.01
    weight[2] = -weight[1]
    weight[3] = 0
    weight[4, 7] = 30.0
    return weight


def arguments(bits, group, symmetric):
    args = {"num_bits": bits, "type": "int", "symmetric": symmetric}
    return args | ({"strategy": "group", "group_size": group} if group else {"strategy": "channel"})


def located(fields, args, module="model.layers.0.mlp.down_proj", **config):
    """Format, shape and packed tensor of a module as a folder with this configuration gives it."""

    def read(field):
        return fields[field].contiguous().flatten().view(torch.uint8).numpy().tobytes()

    stored = {field: (tuple(value.shape), dtype_name(value.dtype)) for field, value in fields.items()}
    groups = {"group_0": {"targets": ["Linear"], "weights": args}}
    told = {"quant_method": "compressed-tensors", "config_groups": groups} | config
    family = CompressedTensors()
    found = family.locate(family.detect(told), ModuleFields(module, stored, read))
    if found is None:
        return None
    packer, shape = found
    return packer, shape, packer.from_stored(fields, shape)


def made(library, format, bits, group, symmetric, dtype, seed=0):
    """What the library makes of a weight: its fields, and the scales and zero points that it was given."""
    weight = weights(seed)
    blocks = weight.view(ROWS, -1, group or COLUMNS)
    args = arguments(bits, group, symmetric)
    scale, zero = library.parameters(blocks.amin(-1), blocks.amax(-1), **args)
    scale = scale.to(DTYPES[dtype])
    parts = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero.to(torch.int8)}
    if dtype != "f32":
        # It computes in the dtype of the weight.
        parts["weight"] = weight.to(DTYPES[dtype])
    return library.pack(format, parts, **args), args


CASES = [
    ("pack-quantized", 4, 32, True, "f16"),
    ("pack-quantized", 4, 64, False, "bf16"),
    ("pack-quantized", 4, 0, True, "f32"),
    ("pack-quantized", 8, 32, True, "bf16"),
    ("pack-quantized", 8, 0, False, "f16"),
    ("pack-quantized", 3, 32, False, "f32"),
    ("pack-quantized", 6, 64, True, "f16"),
    ("int-quantized", 8, 0, True, "bf16"),
    ("int-quantized", 8, 0, False, "f32"),
]


@pytest.mark.parametrize(("format", "bits", "group", "symmetric", "dtype"), CASES)
def test_what_the_library_packs_has_its_values_here(library, format, bits, group, symmetric, dtype):
    fields, args = made(library, format, bits, group, symmetric, dtype)
    packer, shape, packed = located(fields, args)
    end = [f"{group}g" if group else "channel", *["asym"] * (not symmetric), *[dtype] * (dtype != "f16")]
    start = f"w{bits}a16" if format == "pack-quantized" else "w8a8"
    assert (packer.name, shape) == (f"compressed-tensors:{'-'.join([start, *end])}", (ROWS, COLUMNS))
    values = packer.dequantize(packed)
    # The library multiplies in the dtype of the scale: once rounded, values are its own.
    found = library.unpack(format, fields, **args)
    assert torch.equal(values.to(DTYPES[dtype]), found)
    # The same bytes again.
    again = packer.pack(packer.unpack(packed))
    assert again.fields.keys() <= fields.keys()
    for name, value in again.fields.items():
        assert torch.equal(value, fields[name]), name


@pytest.mark.parametrize(
    ("bits", "group", "symmetric"), [(4, 32, True), (4, 64, False), (8, 0, True), (3, 32, False)]
)
def test_codes_are_chosen_as_by_the_library_in_float32(library, bits, group, symmetric):
    fields, _ = made(library, "pack-quantized", bits, group, symmetric, "f32")
    end = [f"{group}g" if group else "channel", *["asym"] * (not symmetric), "f32"]
    packer = qformats.packer(f"compressed-tensors:w{bits}a16-{'-'.join(end)}")
    packed = packer.encode_reference(weights())
    for name, value in packed.fields.items():
        assert torch.equal(value, fields[name]), name


@pytest.mark.parametrize("bits", [3, 5, 6])
def test_words_of_whole_codes_as_written_before(bits):
    """Releases before compressed-tensors PR #732 left the bits of a word free that hold no whole code."""
    packer = qformats.packer(f"compressed-tensors:w{bits}a16-64g-asym")
    packed = packer.encode_reference(weights())
    quantized = packer.unpack(packed)

    def old(codes):
        each = 32 // bits
        codes = torch.nn.functional.pad(codes.to(torch.int64), (0, -codes.shape[1] % each))
        codes = codes.view(codes.shape[0], -1, each)
        words = sum(codes[..., place] << (bits * place) for place in range(each))
        return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)

    fields = dict(packed.fields)
    fields["weight_packed"] = old(quantized.codes)
    fields["weight_zero_point"] = old(quantized.zero_point.t()).t().contiguous()
    assert fields["weight_packed"].shape != packed.fields["weight_packed"].shape
    args = arguments(bits, 64, symmetric=False)
    found, _, same = located(fields, args, version="0.10.0")
    assert found.name == packer.name
    assert torch.equal(same.dequantize(), packed.dequantize())


def test_columns_in_another_order():
    packer = qformats.packer("compressed-tensors:w4a16-32g")
    packed = packer.encode_reference(weights())
    order = torch.arange(COLUMNS, dtype=torch.int32) // 32
    args = arguments(4, 32, symmetric=True) | {"actorder": "group"}
    found, _, _ = located(packed.fields | {"weight_g_idx": order}, args)
    assert found.name == packer.name
    mixed = order[torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(1))]
    found, _, other = located(packed.fields | {"weight_g_idx": mixed}, args)
    assert found.name == "compressed-tensors:w4a16-32g-actorder"
    assert not found.writable
    plain = packer.unpack(packed)
    wanted = plain.scale.float()[:, mixed.long()] * (plain.codes.float() - 8)
    assert torch.equal(found.dequantize(other), wanted)
    # GPTQ's own variant holds the order where its sizes fit.
    gptq = qformats.packer("gptq:4bit-32g-actorder")
    part = found.unpack(other)
    fits = qformats.QuantizedTensor(part.codes[:32], part.scale[:32], (1, 32), 8, g_idx=part.g_idx)
    assert torch.equal(gptq.pack(gptq.represent(fits)).dequantize(), wanted[:32])


def test_one_scale_for_the_whole_tensor(library):
    weight = weights()
    args = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "tensor"}
    scale, _ = library.parameters(weight.min(), weight.max(), **args)
    fields = library.pack("int-quantized", {"weight": weight, "weight_scale": scale}, **args)
    packer, _, packed = located(fields, args)
    assert packer.name == "compressed-tensors:w8a8-channel-f32"
    assert torch.equal(packed.dequantize(), library.unpack("int-quantized", fields, **args))


def test_groups_are_found_as_the_library_finds_them():
    """By the name of a module, a pattern from its beginning, or a class, in this order."""
    groups = {
        "a": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 32}},
        "b": {"targets": ["re:.*down_proj"], "weights": {"num_bits": 8, "group_size": 32}},
        "c": {"targets": ["m.up_proj"], "weights": {"num_bits": 3, "group_size": 32}},
        "W8A16": ["m.o_proj"],
    }
    known = (
        CompressedTensors().detect({"quant_method": "compressed-tensors", "config_groups": groups}).declared
    )
    for module, bits in (("m.down_proj", 8), ("m.up_proj", 3), ("m.gate_proj", 4), ("m.o_proj", 8)):
        assert known.scheme(module).bits == bits
    # A pattern begins where the name does.
    only = {"b": {"targets": ["re:down_proj"], "weights": {"num_bits": 8}}}
    known = CompressedTensors().detect({"quant_method": "compressed-tensors", "config_groups": only}).declared
    assert known.scheme("m.down_proj") is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "expected weights without sparsity"),
        ({"format": "marlin-24"}, "expected weights without sparsity"),
        (
            {
                "transform_config": {
                    "config_groups": {"u": {"type": "hadamard", "apply": [{"location": "input"}]}}
                }
            },
            "u, which is applied to activations",
        ),
        ({"config_groups": {"MXFP6A16": ["Linear"]}}, "a preset whose weights are integers"),
        ({"config_groups": [1]}, "an object, with a name for each group"),
        ({"config_groups": {"a": {"targets": ["Linear"], "weights": {"num_bits": "x"}}}}, "num_bits"),
        (
            {"config_groups": {"a": {"weights": {"num_bits": 8, "block_structure": [1]}}}},
            "two whole numbers",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        CompressedTensors().detect({"quant_method": "compressed-tensors", **config})


def test_transforms_of_weights_alone_are_folded_and_harmless():
    applied = [{"location": "weight_input", "targets": ["Linear"]}]
    config = {"transform_config": {"config_groups": {"v": {"type": "hadamard", "apply": applied}}}}
    assert CompressedTensors().detect({"quant_method": "compressed-tensors", **config}) is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop("weight_shape"), "also weight_shape"),
        (lambda f: f.pop("weight_scale"), "also weight_scale"),
        (lambda f: f.pop("weight_packed"), "weight_packed or weight as well"),
        (lambda f: f.update(weight_shape=torch.tensor([40, COLUMNS])), "40, as weight_shape says"),
        (
            lambda f: f.update(weight_packed=f["weight_packed"][:, :7].contiguous()),
            "7 words for 192 columns of 4 bits",
        ),
        (
            lambda f: f.update(weight_scale=f["weight_scale"][:, :5].contiguous()),
            "groups that divide 192 columns",
        ),
        (
            lambda f: f.update(weight_packed=f["weight_packed"].view(torch.uint8)),
            "u8, one for each 32 columns",
        ),
        (lambda f: f["weight_scale"].fill_(float("inf")), "NaN or infinite"),
    ],
)
def test_fields_that_do_not_fit_are_refused(change, message):
    packed = qformats.packer("compressed-tensors:w4a16-32g").encode_reference(weights())
    fields = {name: value.clone() for name, value in packed.fields.items()}
    change(fields)
    with pytest.raises(ConfigError, match=message):
        located(fields, arguments(4, 32, symmetric=True))


def test_plain_modules():
    assert located({"weight": torch.ones(4, 4)}, arguments(4, 32, symmetric=True)) is None


def test_names():
    assert qformats.packer("w4a16").name == "compressed-tensors:w4a16-128g"
    assert qformats.packer("w8a8").name == "compressed-tensors:w8a8-channel"
    assert qformats.packer("compressed-tensors").name == qformats.packer("llm-compressor").name
    assert qformats.packer("compressed-tensors:w5a16-96g-asym-bf16").spec.bits == 5
    for wrong in ("w7a16-128g", "w4a16-0g", "w8a8-channel-actorder", "w4a16-32g-f16-bf16"):
        with pytest.raises(UnknownFormatError):
            qformats.packer(f"compressed-tensors:{wrong}")
