"""Quantizing while loading gives what an export holds, bit for bit."""

import weakref

import pytest
import torch
from models import glm
from models.architectures import build
from oracles import hf

import qformats
from qformats.errors import ConfigError
from qformats.exporting import on_read
from qformats.interfaces import ReplacedTensors
from qformats.runtime import PackedLayer

IDS = [5, 17, 90, 3, 3, 44, 61, 8, 0, 95]


def fields(model):
    """Every byte of a model, by tensor: packed fields, and plain numbers."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, PackedLayer):
            found |= {f"{name}.{field}": value for field, value in module.packed().fields.items()}
            found[f"{name}.format"] = torch.tensor(list(module.packer.name.encode()))
        else:
            found |= {f"{name}.{key}": value for key, value in module.named_parameters(recurse=False)}
    return found


def assert_same_bytes(one, other):
    ours, theirs = fields(one), fields(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, name
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize(
    "format",
    [
        "gguf:q4_0",
        "gguf:q5_1",
        "gptq:4bit-32g-asym",
        "bitsandbytes:nf4",
        "bitsandbytes:nf4-dq",
        "bitsandbytes:int8",
        "glm:int4",
        "dense:f16",
    ],
)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_equals_an_export_that_is_loaded(name, format, exported, monkeypatch):
    loaded = qformats.load_model(exported(name, format), device="cpu")
    # Several slices a tensor, whatever its size.
    monkeypatch.setattr(on_read, "SLICE_WEIGHTS", 2048)
    direct = qformats.load_model(exported.model(name), device="cpu", format=format, quantizer="rtn")
    assert_same_bytes(direct, loaded)


@pytest.mark.parametrize("format", ["gguf:q8_0", "bitsandbytes:nf4", "glm:int8"])
@pytest.mark.parametrize("source", ["gguf:q4_0", "gptq:4bit-32g", "bitsandbytes:nf4"])
def test_from_one_quantized_format_to_another(source, format, exported, tmp_path):
    before = exported("llama", source)
    target = tmp_path / ("out.gguf" if format.startswith("gguf") else "out")
    qformats.export(before, target, format=format, quantizer="rtn")
    loaded = qformats.load_model(target, device="cpu")
    assert_same_bytes(qformats.load_model(before, device="cpu", format=format, quantizer="rtn"), loaded)


def test_rules_for_single_tensors(exported, tmp_path):
    rules = {"v_proj|attn_v": "q8_0"}
    qformats.export(exported.model("llama"), tmp_path / "out.gguf", format="gguf:q4_0", tensor_types=rules)
    loaded = qformats.load_model(tmp_path / "out.gguf", device="cpu")
    direct = qformats.load_model(
        exported.model("llama"), device="cpu", format="gguf:q4_0", tensor_types=rules
    )
    assert {layer.format for layer in direct.qformats_report.weights} >= {"gguf:q4_0", "gguf:q8_0"}
    assert_same_bytes(direct, loaded)


def test_where_the_container_joins_tensors_the_model_is_exported_first(tmp_path):
    folder = glm.build("chatglm3-rope-ratio", tmp_path / "in")
    qformats.export(folder, tmp_path / "out.gguf", format="gguf:q8_0")
    loaded = qformats.load_model(tmp_path / "out.gguf", device="cpu")
    direct = qformats.load_model(folder, device="cpu", format="gguf:q8_0")
    assert_same_bytes(direct, loaded)
    assert (hf.logits(direct, IDS) == hf.logits(loaded, IDS)).all()


def test_no_more_than_a_slice_is_dense_at_a_time(exported, monkeypatch):
    """What is read of the source is let go of before the next slice is read."""
    alive, most = weakref.WeakSet(), []
    convert = on_read.encode

    def watched(tensor, part, *rest):
        most.append(sum(other.nbytes for other in alive))
        alive.add(part)
        return convert(tensor, part, *rest)

    monkeypatch.setattr(on_read, "SLICE_WEIGHTS", 2048)
    monkeypatch.setattr(on_read, "encode", watched)
    qformats.load_model(exported.model("llama"), device="cpu", format="glm:int4")
    assert len(most) > 50
    # Plain tensors are read whole, quantized ones in slices of 2048 float32 weights.
    largest = max(t.nbytes for t in qformats.open(exported.model("llama")).tensors.values())
    assert max(most) <= largest


def test_a_checkpoint_that_is_open_can_be_given(exported):
    source = qformats.open(exported.model("llama"))
    model = qformats.load_model(source, device="cpu", format="glm:int8")
    assert {weight.format for weight in model.qformats_report.weights} == {"glm:int8"}
    wrapped = ReplacedTensors(source, {})
    assert not qformats.load_model(wrapped, device="cpu").qformats_report.weights


@pytest.mark.parametrize("name", ["gpt_oss", "granitemoe", "llama4"])
def test_stacked_experts_run_as_they_are_and_quantized_for_a_file(name, tmp_path):
    folder = build(name, tmp_path / "in")
    model = qformats.load_model(folder, device="cpu")
    model.set_attn_implementation("eager")
    assert abs(hf.logits(model, IDS) - hf.logits(folder, IDS)).max() < 1e-5
    qformats.export(folder, tmp_path / "m.gguf", format="gguf:q8_0")
    exported = qformats.load_model(tmp_path / "m.gguf", device="cpu")
    loaded = qformats.load_model(folder, device="cpu", format="gguf:q8_0")
    assert not [name for name, values in loaded.named_parameters() if values.ndim == 3]
    assert (hf.logits(loaded, IDS) == hf.logits(exported, IDS)).all()


def test_wrong_recipes_are_refused(exported):
    source = exported.model("llama")
    with pytest.raises(ConfigError, match="tensor-type"):
        qformats.load_model(source, device="cpu", format="glm:int8", tensor_types={"nothing": "int4"})
    with pytest.raises(ConfigError, match="option of the quantizer rtn"):
        qformats.load_model(source, device="cpu", format="glm:int8", quantizer_options={"samples": "2"})
