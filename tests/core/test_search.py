"""Plain rounding with a search of scales, and what is said of too few levels."""

import pytest
import torch

import qformats
from qformats.errors import ConfigError
from qformats.numbers import AffineGrid
from qformats.registry import registry

FORMATS = [
    "gptq:4bit-32g",
    "gptq:4bit-32g-asym",
    "gptq:2bit-32g",
    "gguf:q4_0",
    "gguf:q4_1",
    "gguf:q4_k",
    "gguf:q2_k",
]
FORMATS += ["bitsandbytes:nf4", "bitsandbytes:fp4", "bitsandbytes:nf4-dq", "bitsandbytes:int8", "glm:int4"]


@pytest.fixture(scope="module")
def weight():
    """Heavy-tailed rows, of which a range that covers everything wastes levels."""
    generator = torch.Generator().manual_seed(5)
    normal = torch.randn(32, 512, generator=generator)
    return 0.02 * normal * (1 + normal.square())


def _error(quantized, weight):
    return float((quantized.dequantize() - weight).square().sum())


@pytest.mark.parametrize("format", FORMATS)
def test_a_search_lowers_the_squared_error(format, weight):
    plain = qformats.quantize(weight, format)
    found = qformats.quantize(weight, format, quantizer_options={"search": "mse"})
    qformats.packer(format).grid.validate(found)
    assert _error(found, weight) < _error(plain, weight)
    none = qformats.quantize(weight, format, quantizer_options={"search": "none"})
    assert torch.equal(none.codes, plain.codes)
    assert torch.equal(none.scale, plain.scale)


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_packed_is_what_was_found(format, weight):
    rtn = registry().quantizer("rtn", {"search": "mse"})
    packer = qformats.packer(format)
    packed = rtn.encode(weight, packer)
    assert torch.equal(packed.dequantize(), rtn.quantize(weight, packer).dequantize())


def test_scales_of_both_signs_are_tried():
    """Levels from -8 to 7: what reaches further up than down is stored turned over, as in q4_0."""
    weight = torch.tensor([[8.0, -7.0, 6.0, -5.0, 4.0, 3.0, 2.0, 1.0]])
    found = AffineGrid(4, 8).quantize(weight, torch.ones(8))
    assert found.scale.item() == -1
    assert torch.equal(found.dequantize(), weight)
    balanced = AffineGrid(4, 8, low=1).quantize(weight, torch.ones(8))
    assert balanced.scale.item() > 0


def test_an_importance_wins_over_equal_weights(weight):
    importance = torch.rand(512, generator=torch.Generator().manual_seed(1)).pow(4)
    options = {"search": "mse"}
    one = qformats.quantize(weight, "gptq:4bit-32g", importance=importance)
    both = qformats.quantize(weight, "gptq:4bit-32g", importance=importance, quantizer_options=options)
    assert torch.equal(one.scale, both.scale)
    assert not torch.equal(
        one.scale, qformats.quantize(weight, "gptq:4bit-32g", quantizer_options=options).scale
    )


def test_wrong_values(weight):
    with pytest.raises(ConfigError, match=r"search.*'best'.*none or mse"):
        qformats.quantize(weight, "gguf:q4_0", quantizer_options={"search": "best"})


@pytest.mark.parametrize("format", ["gguf:q8_0", "gguf:mxfp4", "gguf:tq2_0"])
def test_a_format_without_a_choice_is_refused_and_such_a_tensor_is_not(format, weight, tmp_path):
    options = {"quantizer": "rtn", "quantizer_options": {"search": "mse"}}
    with pytest.raises(ConfigError, match="scales of this format follow from its largest weights"):
        qformats.export("demo", tmp_path / "out.gguf", format=format, **options)
    assert not list(tmp_path.iterdir())
    plain = qformats.quantize(weight, format)
    assert torch.equal(
        qformats.quantize(weight, format, quantizer_options={"search": "mse"}).codes, plain.codes
    )


def test_exports_search(tmp_path):
    plain = qformats.export("demo", tmp_path / "a", format="gptq:4bit-128g", quantizer="rtn")
    options = {"search": "mse"}
    found = qformats.export(
        "demo", tmp_path / "b", format="gptq:4bit-128g", quantizer="rtn", quantizer_options=options
    )
    assert plain.file_nbytes == found.file_nbytes
    name = "model.layers.1.mlp.up_proj.weight"
    weight = qformats.open("demo").read(name)
    errors = [float((qformats.open(tmp_path / x).read(name) - weight).norm()) for x in "ab"]
    # 0.87 where it was written.
    assert errors[1] < 0.92 * errors[0]


@pytest.mark.parametrize(
    ("format", "quantizer", "warned"),
    [
        ("gptq:2bit-128g", "rtn", True),
        ("gptq:3bit-128g", "rtn", False),
        ("gptq:2bit-128g", "gptq", False),
        ("gguf:q2_k", "rtn", False),
        ("gguf:tq1_0", "rtn", False),
    ],
)
def test_plain_rounding_to_few_levels_is_warned_of_once(format, quantizer, warned, tmp_path):
    from qformats.exporting import Recipe, make_plan

    plan = make_plan(qformats.open("demo"), tmp_path / "out", Recipe(format, quantizer=quantizer), {})
    assert ["4 levels" in note for note in plan.notes] == ([True] if warned else [])


def test_loading_warns_too():
    with pytest.warns(UserWarning, match="rounding to the 4 levels of gptq:2bit-32g"):
        qformats.load_model("demo", device="cpu", format="gptq:2bit-32g", quantizer="rtn")


def test_what_is_only_copied_is_not_warned_of(tmp_path):
    qformats.export("demo", tmp_path / "a", format="gptq:2bit-32g", quantizer="rtn")
    again = qformats.export(tmp_path / "a", tmp_path / "b", format="gptq:2bit-32g", quantizer="rtn")
    assert not [note for note in again.notes if "levels" in note]
