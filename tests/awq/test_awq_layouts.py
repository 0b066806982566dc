"""AutoAWQ's own layers, as it packed them: read in every layout, written in the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import qformats
from qformats.errors import ConfigError, ShapeError, UnknownFormatError
from qformats.interfaces import ModuleFields
from qformats.numbers import dtype_name
from qformats_awq import layouts
from qformats_awq.family import AWQFamily
from qformats_awq.packers import AWQPacker, FastPacker

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "awq" / "layers.safetensors")
FIELDS = ("qweight", "qzeros", "scales")
GROUPS = (32, 64, 128)


def located(fields, config, module="m"):
    """Format, shape and packed tensor of a module as a folder with this configuration gives it."""

    def read(field):
        return fields[field].contiguous().flatten().view(torch.uint8).numpy().tobytes()

    stored = {field: (tuple(value.shape), dtype_name(value.dtype)) for field, value in fields.items()}
    family = AWQFamily()
    found = family.locate(
        family.detect({"quant_method": "awq", **config}), ModuleFields(module, stored, read)
    )
    if found is None:
        return None
    packer, shape = found
    return packer, shape, packer.from_stored(fields, shape)


def golden(group, layout=""):
    names = FIELDS if layout else ("codes", "zeros", "scales")
    return {name: GOLDEN[".".join(filter(None, (str(group), layout, name)))] for name in names}


def canonical(group):
    parts = golden(group)
    return qformats.QuantizedTensor(
        parts["codes"], parts["scales"], (1, group), zero_point=parts["zeros"].int()
    )


@pytest.mark.parametrize("group", GROUPS)
def test_the_same_bytes_as_autoawq(group):
    packer = AWQPacker(group)
    packed = packer.pack(canonical(group))
    wanted = golden(group, "gemm")
    assert packed.fields.keys() == wanted.keys()
    assert all(torch.equal(packed.fields[name], value) for name, value in wanted.items())
    found = packer.unpack(packed)
    assert torch.equal(found.codes, canonical(group).codes)
    assert torch.equal(found.zero_point, canonical(group).zero_point)
    # AutoAWQ multiplies in float16: once rounded, values are its own.
    values = packer.dequantize(packed)
    assert torch.equal(values.half(), GOLDEN[f"{group}.values"].t())
    assert torch.equal(values, canonical(group).dequantize())


def test_the_order_of_a_word():
    word = torch.tensor([[0x76543210]], dtype=torch.int32)
    assert layouts.separate(word).flatten().tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert torch.equal(layouts.interleave(layouts.separate(word)), word)


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("layout", ["gemm", "gemv"])
def test_layouts_are_known_by_their_shapes(layout, group, declared):
    """Whatever the configuration calls them."""
    config = {"bits": 4, "version": layout, "group_size": group} if declared else {"version": "gemm"}
    packer, shape, packed = located(golden(group, layout), config)
    assert (packer.name, shape) == (f"awq:4bit-{group}g", (32, 256))
    assert torch.equal(packer.dequantize(packed), canonical(group).dequantize())


@pytest.mark.parametrize("zeros", ["qzeros", "scaled_zeros"])
@pytest.mark.parametrize("group", GROUPS)
def test_float_offsets(group, zeros):
    """What gemv_fast and llm-awq store instead of a zero point is a float16 offset."""
    fields = golden(group, "gemv_fast")
    fields[zeros] = fields.pop("qzeros")
    packer, shape, packed = located(fields, {"version": "gemv_fast", "group_size": group})
    assert (packer.name, shape) == (f"awq:4bit-{group}g-gemv_fast", (32, 256))
    exact = canonical(group)
    offset = -(exact.scale * exact.zero_point.float()).half().float()
    spread = [part.repeat_interleave(group, 1) for part in (exact.scale.float(), offset)]
    assert torch.equal(packer.dequantize(packed), spread[0] * exact.codes + spread[1])
    assert torch.equal(packer.pack(packer.unpack(packed)).fields["qweight"], fields["qweight"])
    # A float offset is what q4_1 stores too.
    q4_1 = qformats.packer("gguf:q4_1")
    held = q4_1.pack(q4_1.represent(packer.unpack(packed)))
    assert torch.equal(held.dequantize(), packer.dequantize(packed))
    assert not packer.writable


def test_padded_scales():
    """Room for groups, measured with AutoAWQ's calculate_zeros_width."""
    cases = ((4096, 128, 4), (4096, 64, 8), (4096, 32, 16), (11008, 128, 11), (11008, 64, 22), (2560, 128, 3))
    for columns, group, width in cases:
        assert layouts.padded_groups(columns, group) == 8 * width
        assert FastPacker(group).stored((8, columns))["scales"][0] == (8 * width, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop("scales"), "only qweight, qzeros; expected qweight, qzeros and scales"),
        (lambda f: f.update(qzeros=f["qzeros"][:, :2]), "expected shapes of gemm, gemv or gemv_fast"),
        (lambda f: f.update(qweight=torch.zeros(32, 32, dtype=torch.int32)), "the layout of GPTQ"),
        (lambda f: f.update(qweight=torch.zeros(16, 64, dtype=torch.int32)), "the layout of Marlin"),
        (lambda f: f.update(scales=f["scales"].to(torch.float64)), "a matrix of f16 or bf16 or f32"),
        (lambda f: (f.pop("qweight"), f.pop("qzeros")), "a model without scaled activations"),
    ],
)
def test_what_is_not_a_layer_of_awq_is_refused(change, message):
    fields = golden(64, "gemm")
    change(fields)
    with pytest.raises(ConfigError, match=message):
        located(fields, {"group_size": 64})


def test_what_is_plain_is_left_alone():
    assert located({"bias": torch.zeros(32)}, {}) is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"bits": 8}, "bits: found 8; expected 4, which is all that AWQ's layouts hold"),
        ({"version": "marlin"}, "version: found 'marlin'; expected gemm or gemv or gemv_fast or llm-awq"),
        ({"group_size": -2}, "group_size"),
    ],
)
def test_configurations_that_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        AWQFamily().detect({"quant_method": "awq", **config})


def test_configurations_of_many_programs():
    family = AWQFamily()
    for config in (
        {"quant_method": "awq", "zero_point": True, "group_size": 128, "bits": 4, "version": "GEMM"},
        {"w_bit": 4, "q_group_size": 128, "zero_point": True, "version": "GEMM"},
        {"quant_method": "auto-round", "packing_format": "auto_round:auto_awq", "bits": 4, "group_size": 128},
        {"quant_method": "awq", "bits": 4, "group_size": 128, "format": "gemm", "backend": "auto"},
    ):
        assert family.detect(config).name == "awq:4bit-128g"
    assert family.detect({"quant_method": "awq", "group_size": -1}).name == "awq:4bit--1g"
    for other in (
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "bits": 4},
        {"bits": 4, "group_size": 64},
        {},
    ):
        assert family.detect(other) is None


def test_names():
    assert qformats.packer("awq").name == qformats.packer("AutoAWQ").name == "awq:4bit-128g"
    assert qformats.packer("awq:4bit--1g-bf16").name == "awq:4bit--1g-bf16"
    for wrong in ("awq:3bit-128g", "awq:4bit-0g", "awq:4bit--1g-gemv_fast"):
        with pytest.raises(UnknownFormatError):
            qformats.packer(wrong)
    with pytest.raises(ShapeError, match="12 outputs are not a multiple of 8"):
        qformats.packer("awq").encode_reference(torch.ones(12, 128))


def test_scales_that_are_no_numbers_are_refused():
    for layout in ("gemm", "gemv", "gemv_fast"):
        fields = golden(64, layout)
        fields["scales"] = fields["scales"].clone()
        fields["scales"][0, 0] = float("nan")
        with pytest.raises(ConfigError, match="NaN or infinite"):
            located(fields, {"group_size": 64})
