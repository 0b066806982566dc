"""Transformers' own ``from_pretrained`` on folders that qformats writes."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.command import call
from models import tiny
from oracles import hf, package_folder
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

import qformats
from qformats.errors import CheckpointError, ConfigError
from qformats.registry import registry
from qformats.runtime.linear import QuantLinear
from qformats.runtime.transformers_hooks import QformatsConfig, register

IDS = [3, 14, 15, 9, 26, 5, 35, 8]
TOLERANCE = 1e-5
ACCELERATE = "1.15.0"


def export(source, target: Path, format: str) -> Path:
    qformats.export(source, target, format=format, quantizer="rtn")
    return target


def dense_values(folder: Path, target: Path):
    """The same model in Transformers, its weights decoded to float32."""
    return hf.load(export(folder, target, "dense:f32"))


def packed_layers(model) -> dict[str, QuantLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantLinear)}


def raw(folder: Path) -> dict[str, bytes]:
    """Bytes of every tensor of a folder, with what their dtype and shape are."""
    return {
        name: (str(value.dtype), tuple(value.shape), value.contiguous().view(torch.uint8).numpy().tobytes())
        for name, value in load_file(folder / "model.safetensors").items()
    }


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo model in a format that has no method of its own."""
    return export("demo", tmp_path_factory.mktemp("demo") / "int4", "glm:int4")


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("llama", "glm:int4"),
        ("llama-tied", "glm:int8"),
        ("llama-bias", "glm:int8-f32"),
        ("qwen3", "glm:int4-bf16"),
        ("gpt2", "glm:int8"),
    ],
)
def test_runs_on_packed_weights(name, format, tmp_path):
    """The numbers are those of the decoded weights, and the weights in memory are the file's."""
    folder = export(tiny.build(name, tmp_path / "dense"), tmp_path / "packed", format)
    model = hf.load(folder)
    stored = load_file(folder / "model.safetensors")
    layers = packed_layers(model)
    assert {f"{layer}.weight" for layer in layers} == {
        key for key in stored if stored[key].dtype == torch.int8
    }
    for layer, module in layers.items():
        for field, value in module.packed().fields.items():
            assert torch.equal(value, stored[f"{layer}.{field}"])
    reference = dense_values(folder, tmp_path / "decoded")
    assert np.abs(hf.logits(model, IDS) - hf.logits(reference, IDS)).max() < TOLERANCE
    assert hf.greedy(model, IDS, 8) == hf.greedy(reference, IDS, 8)


def test_saves_what_it_loaded(demo, tmp_path):
    AutoModelForCausalLM.from_pretrained(demo).save_pretrained(tmp_path / "again")
    assert raw(tmp_path / "again") == raw(demo)
    before, after = (
        json.loads((folder / "config.json").read_text())["quantization_config"]
        for folder in (demo, tmp_path / "again")
    )
    assert after == before == {"quant_method": "qformats", "format": "glm:int4"}
    # Both programs read it again.
    assert qformats.open(tmp_path / "again").tensors.keys() == qformats.open(demo).tensors.keys()
    first, second = hf.load(demo), hf.load(tmp_path / "again")
    assert np.array_equal(hf.logits(first, IDS), hf.logits(second, IDS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_leaves_the_fields_alone(demo, dtype):
    """Only what is computed is in the dtype asked for; codes and scales stay what they are."""
    model = AutoModelForCausalLM.from_pretrained(demo, dtype=dtype)
    layer = model.get_submodule("model.layers.0.self_attn.q_proj")
    assert {name: field.dtype for name, field in layer.packed().fields.items()} == {
        "weight": torch.int8,
        "weight_scale": torch.float16,
    }
    assert model.lm_head.weight.dtype == dtype
    assert model(torch.tensor([IDS])).logits.dtype == dtype


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_device_maps(demo, device_map):
    package_folder("accelerate", "accelerate", ACCELERATE)
    model = AutoModelForCausalLM.from_pretrained(demo, device_map=device_map, dtype=torch.float32)
    assert model.device.type == ("cuda" if device_map == "auto" and torch.cuda.is_available() else "cpu")
    assert np.abs(hf.logits(model.cpu(), IDS) - hf.logits(demo, IDS)).max() < 1e-3


def test_disk_is_refused(demo):
    device_map = {"model": "cpu", "model.layers.3": "disk", "lm_head": "cpu"}
    with pytest.raises(ConfigError, match=r"device_map: found 'disk'.*cannot be offloaded to disk"):
        AutoModelForCausalLM.from_pretrained(demo, device_map=device_map)


@pytest.fixture
def spoilt(demo, tmp_path):
    """Write the folder again with its tensors changed."""

    def write(change):
        folder = tmp_path / "spoilt"
        shutil.copytree(demo, folder)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return write


def remove_norm(tensors):
    del tensors["model.layers.1.input_layernorm.weight"]


def remove_packed(tensors):
    for field in ("weight", "weight_scale"):
        del tensors[f"model.layers.1.mlp.up_proj.{field}"]


def add_stranger(tensors):
    tensors["model.layers.1.mlp.strange_proj.weight"] = torch.zeros(2, 2)


def add_packed_stranger(tensors):
    tensors["model.layers.9.mlp.up_proj.weight"] = torch.zeros(1024, 128, dtype=torch.int8)
    tensors["model.layers.9.mlp.up_proj.weight_scale"] = torch.zeros(1024, dtype=torch.float16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove_norm, "tensor 'model.layers.1.input_layernorm.weight': is missing, and Transformers would"),
        (remove_packed, "tensor 'model.layers.1.mlp.up_proj.weight': is missing, and Transformers would"),
        (
            add_stranger,
            "tensor 'model.layers.1.mlp.strange_proj.weight': is not a weight of LlamaForCausalLM",
        ),
        (add_packed_stranger, "1 packed weights.*model.layers.9.mlp.up_proj.weight.*has no linear layer"),
    ],
)
def test_nothing_is_made_up(spoilt, change, message):
    """A weight that is missing would be random, and one too many says that the model is another one."""
    with pytest.raises(CheckpointError, match=message):
        AutoModelForCausalLM.from_pretrained(spoilt(change))


def test_fused_experts_are_refused(tmp_path):
    """Transformers keeps the experts of Mixtral in one tensor: they are packed one by one in the folder."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    MixtralForCausalLM(config).save_pretrained(tmp_path / "dense")
    folder = export(tmp_path / "dense", tmp_path / "packed", "glm:int4")
    with pytest.raises(CheckpointError, match=r"12 packed weights \(\d+% of all\).*experts.*load_model runs"):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("name", ["demo", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantizes_while_loading_as_an_export_does(name, dtype, tmp_path):
    """Bit by bit, in whatever dtype the model computes."""
    dense = qformats.open("demo").path if name == "demo" else tiny.build(name, tmp_path / "dense", "float16")
    model = AutoModelForCausalLM.from_pretrained(
        dense, quantization_config=QformatsConfig(format="glm:int4"), dtype=dtype
    )
    exported = export(dense, tmp_path / "exported", "glm:int4")
    expected = hf.load(exported)
    layers = packed_layers(model)
    assert layers.keys() == packed_layers(expected).keys()
    for layer, module in packed_layers(expected).items():
        for field, value in module.packed().fields.items():
            assert torch.equal(value, layers[layer].packed().fields[field]), (layer, field)
    model.save_pretrained(tmp_path / "saved")
    ours, theirs = raw(tmp_path / "saved"), raw(exported)
    assert ours.keys() == theirs.keys()
    fields = [f"{layer}.{field}" for layer in layers for field in ("weight", "weight_scale")]
    assert {key: ours[key] for key in fields} == {key: theirs[key] for key in fields}
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=dtype)
    with torch.no_grad():
        assert torch.equal(again(torch.tensor([IDS])).logits, model(torch.tensor([IDS])).logits)


@pytest.mark.parametrize("format", ["gguf:q4_0", "gptq:4bit-128g", "bitsandbytes:nf4", "dense:f16", "none"])
def test_formats_that_load_model_quantizes_into(format):
    path = qformats.open("demo").path
    config = QformatsConfig(format=format)
    with pytest.raises(qformats.QFormatsError, match=r"glm:int8" if format != "none" else "no format 'none'"):
        AutoModelForCausalLM.from_pretrained(path, quantization_config=config)


@pytest.mark.parametrize("format", ["bitsandbytes:nf4", "bitsandbytes:int8"])
def test_native_method(format, tmp_path):
    """Where Transformers has the method, its own code reads our folder: here with bitsandbytes."""
    package_folder("accelerate", "accelerate", ACCELERATE)
    package_folder("bitsandbytes", "bitsandbytes", "0.50.2")
    import bitsandbytes

    folder = export(tiny.build("llama", tmp_path / "dense"), tmp_path / "packed", format)
    model = hf.load(folder)
    kind = bitsandbytes.nn.Linear4bit if format.endswith("nf4") else bitsandbytes.nn.Linear8bitLt
    assert isinstance(model.get_submodule("model.layers.0.self_attn.q_proj"), kind)
    assert not packed_layers(model)
    reference = hf.logits(dense_values(folder, tmp_path / "decoded"), IDS)
    # bitsandbytes rounds activations: to bfloat16 on some processors for nf4, to 8 bits for int8.
    tolerance = 0.03 if format.endswith("nf4") else 0.1
    difference = hf.logits(model, IDS) - reference
    assert np.linalg.norm(difference) < tolerance * np.linalg.norm(reference)


def test_registering_again_does_nothing():
    before = dict(AUTO_QUANTIZER_MAPPING)
    register()
    assert before == AUTO_QUANTIZER_MAPPING
    assert "qformats" in before


def test_a_plugin_that_cannot_tell_its_method(monkeypatch):
    """It is named, and the others are registered all the same."""
    from qformats_glm.family import GLM

    class Broken(GLM):
        name = "broken"

        def to_config(self, packer, **_modules):
            raise RuntimeError("no idea")

    known = registry().families()
    monkeypatch.setattr(registry(), "families", lambda: [Broken(), *known])
    monkeypatch.delitem(AUTO_QUANTIZER_MAPPING, "qformats")
    monkeypatch.delitem(AUTO_QUANTIZATION_CONFIG_MAPPING, "qformats")
    with pytest.warns(
        UserWarning, match="Transformers cannot load folders of the family broken: .*RuntimeError: no idea"
    ):
        register()
    assert AUTO_QUANTIZATION_CONFIG_MAPPING["qformats"] is QformatsConfig


def test_methods_of_other_plugins(tmp_path, monkeypatch):
    """A third party's format runs in Transformers under the method that its folders declare."""
    example = Path(__file__).parents[2] / "docs" / "examples" / "qformats-toy"
    info = tmp_path / "site" / "qformats_toy-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: qformats-toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[qformats]\ntoy = qformats_toy\n")
    for folder in (info.parent, example):
        monkeypatch.syspath_prepend(str(folder))
    registry.cache_clear()
    try:
        folder = export("demo", tmp_path / "toy", "toy:int6")
        assert (
            json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"] == "toy"
        )
        register()
        model = hf.load(folder)
        assert len(packed_layers(model)) == 28
        reference = dense_values(folder, tmp_path / "decoded")
        assert np.abs(hf.logits(model, IDS) - hf.logits(reference, IDS)).max() < 1e-4
        model.save_pretrained(tmp_path / "again")
        assert raw(tmp_path / "again").keys() == raw(folder).keys()
        assert (
            qformats.open(tmp_path / "again").tensors["model.layers.0.mlp.up_proj.weight"].format
            == "toy:int6"
        )
    finally:
        registry.cache_clear()
        sys.modules.pop("qformats_toy", None)
        for mapping in (AUTO_QUANTIZER_MAPPING, AUTO_QUANTIZATION_CONFIG_MAPPING):
            mapping.pop("toy", None)


@pytest.fixture
def unregistered(monkeypatch):
    """Transformers as it is where nobody called ``register_with_transformers``."""
    register()
    for mapping in (AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING):
        monkeypatch.delitem(mapping, "qformats")


def test_loading_registers(unregistered, demo):
    """A second load of the same folder, by Transformers itself, does not give random layers."""
    own = qformats.load_model(demo, device="cpu")
    model = AutoModelForCausalLM.from_pretrained(demo, dtype=torch.float32)
    ids = torch.tensor([IDS])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, own(ids).logits)


def test_exporting_registers(unregistered, tmp_path):
    folder = export("demo", tmp_path / "int8", "glm:int8")
    assert packed_layers(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


@pytest.mark.parametrize(("format", "told"), [("glm:int8", True), ("gptq:4bit-128g", False)])
def test_export_tells_how_such_folders_are_loaded(capsys, tmp_path, format, told):
    result = call(capsys, "export", "demo", "-f", format, "--quantizer", "rtn", "-o", tmp_path / "out")
    assert result.code == 0
    line = (
        "Load it with qformats.from_pretrained, or with Transformers after: "
        "import qformats; qformats.register_with_transformers()\n"
    )
    assert (line in result.out) == told
