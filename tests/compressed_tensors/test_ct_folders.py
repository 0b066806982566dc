"""Folders: written, loaded by Transformers with the library, converted exactly, and read as others wrote them."""

from __future__ import annotations

import json

import pytest
import torch
from models import moe, tiny
from models.tensors import same, values
from oracles import package_folder
from safetensors.torch import load_file, save_file

import qformats
from qformats.errors import CheckpointError, ConfigError, InexactExportError

DOWN = "model.layers.1.mlp.down_proj"
IDS = torch.tensor([[1, 5, 9, 33, 7, 2, 60, 12]])
NAME = "compressed-tensors"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.build("llama", tmp_path_factory.mktemp("models") / "llama", "float16")


@pytest.fixture(scope="module")
def folders(llama, tmp_path_factory):
    """The same model in several formats, one plain module each."""
    out = tmp_path_factory.mktemp("folders")
    for variant in ("w4a16-32g", "w4a16-32g-asym", "w8a8-channel", "mxfp4"):
        qformats.export(llama, out / variant, format=f"{NAME}:{variant}", tensor_types={DOWN: "dense:f16"})
    return out


def declared(folder):
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def rewritten(folder, target, tensors=lambda stored: stored, **changes):
    target.mkdir()
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (target / file.name).write_bytes(file.read_bytes())
    content = json.loads((folder / "config.json").read_text())
    content["quantization_config"] |= changes
    (target / "config.json").write_text(json.dumps(content))
    save_file(tensors(load_file(folder / "model.safetensors")), target / "model.safetensors")
    return target


@pytest.mark.parametrize("variant", ["w4a16-32g", "w4a16-32g-asym", "w8a8-channel", "mxfp4"])
def test_transformers_loads_the_same_values(variant, folders, monkeypatch):
    """With the library, which decompresses as it loads or when it first runs; nothing is missing or left over."""
    package_folder("compressed-tensors", "compressed_tensors", "0.20.0")
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    from transformers import AutoModelForCausalLM

    folder = folders / variant
    # MXFP4, which has no scales of floats to give a dtype, becomes bfloat16 there.
    dtype = torch.bfloat16 if variant == "mxfp4" else torch.float16
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not any(info.values())
    with torch.inference_mode():
        model(IDS)
    expected = values(folder)
    found = dict(model.named_parameters())
    linear = [name for name in expected if "_proj" in name]
    assert len(linear) == 14
    # The library rounds a product once, to the dtype of the scale.
    assert all(torch.equal(found[name], expected[name].to(dtype)) for name in linear)


def test_what_is_written_is_what_the_library_declares(folders):
    package_folder("compressed-tensors", "compressed_tensors", "0.20.0")
    from compressed_tensors.quantization import QuantizationConfig

    for variant, bits, strategy in (("w4a16-32g-asym", 4, "group"), ("w8a8-channel", 8, "channel")):
        found = declared(folders / variant)
        assert found.get("dequantize", False) is (variant == "w4a16-32g-asym")
        read = QuantizationConfig.model_validate(found)
        (scheme,) = read.config_groups.values()
        assert (scheme.weights.num_bits, str(scheme.weights.strategy)) == (bits, strategy)
        assert scheme.weights.symmetric is (not variant.endswith("asym"))
        assert {*read.ignore} == {"lm_head", DOWN}
        assert (scheme.input_activations is None) is (bits == 4)


def test_the_chain_of_one_grid(llama, tmp_path):
    """GPTQ, AWQ, compressed-tensors, GPTQ: the same tensors again, each step exact."""
    qformats.export(llama, tmp_path / "gptq", format="gptq:4bit-32g-asym", quantizer="rtn")
    before = tmp_path / "gptq"
    for step in ("awq:4bit-32g", f"{NAME}:w4a16-32g-asym", "gptq:4bit-32g-asym"):
        after = tmp_path / step.replace(":", "-")
        qformats.export(before, after, format=step, require_exact=True)
        assert same(before, after)
        before = after
    first, last = (load_file(path / "model.safetensors") for path in (tmp_path / "gptq", before))
    assert first.keys() == last.keys()
    assert all(torch.equal(first[name], last[name]) for name in first)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("w4a16-32g", "gguf:q4_0"),
        ("w4a16-32g", "gptq:4bit-32g"),
        ("w8a16-32g", "gguf:q8_0"),
        ("w4a16-channel", "glm:int4"),
        ("w8a8-channel", "gptq:8bit--1g"),
    ],
)
def test_the_same_numbers_elsewhere(first, second, llama, tmp_path):
    """There and back; the codes and scales are the same tensors."""
    qformats.export(llama, tmp_path / "first", format=f"{NAME}:{first}")
    target = tmp_path / ("second.gguf" if second.startswith("gguf") else "second")
    qformats.export(tmp_path / "first", target, format=second, require_exact=True)
    qformats.export(target, tmp_path / "third", format=f"{NAME}:{first}", require_exact=True)
    one, three = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "third"))
    packed = [name for name in one if "_proj" in name]
    assert len(packed) >= 28
    assert all(torch.equal(one[name], three[name]) for name in packed)


def test_zero_points_in_the_32_levels_of_q5_0(folders, tmp_path):
    """Another number may stand for 0 on the way back, for the same values."""
    folder = folders / "w4a16-32g-asym"
    qformats.export(folder, tmp_path / "m.gguf", format="gguf:q5_0", tensor_types={"blk.1.ffn_down": "f16"})
    qformats.export(
        tmp_path / "m.gguf", tmp_path / "back", format=f"{NAME}:w4a16-32g-asym", require_exact=True
    )
    before, after = values(folder), values(tmp_path / "back")
    assert all(torch.equal(before[name] + 0.0, after[name] + 0.0) for name in before if "_proj" in name)


def test_int8_of_bitsandbytes(llama, tmp_path):
    """Its scale is the largest magnitude of a row, 127 times the step."""
    qformats.export(llama, tmp_path / "bnb", format="bitsandbytes:int8")
    qformats.export(tmp_path / "bnb", tmp_path / "ct", format=f"{NAME}:w8a8-channel-f32")
    model = qformats.open(tmp_path / "ct")
    assert {t.format for n, t in model.tensors.items() if "_proj" in n} == {f"{NAME}:w8a8-channel-f32"}
    before, after = values(tmp_path / "bnb"), values(tmp_path / "ct")
    assert all(torch.allclose(before[name], after[name], rtol=1e-6, atol=0) for name in before)
    with pytest.raises(InexactExportError):
        qformats.export(tmp_path / "ct", tmp_path / "q4", format=f"{NAME}:w4a16-32g", require_exact=True)


def test_bfloat16_scales_are_held_by_float16_where_they_are_normal(llama, tmp_path):
    qformats.export(llama, tmp_path / "bf16", format=f"{NAME}:w4a16-32g-bf16")
    qformats.export(tmp_path / "bf16", tmp_path / "gptq", format="gptq:4bit-32g", require_exact=True)
    assert same(tmp_path / "bf16", tmp_path / "gptq")


def test_groups_of_several_formats_in_one_folder(folders, tmp_path):
    """Packed words in one layer and bytes in another, as mixed-precision models have them."""
    eight = load_file(folders / "w8a8-channel" / "model.safetensors")
    up = "model.layers.0.mlp.up_proj"

    def mixed(stored):
        kept = {name: value for name, value in stored.items() if not name.startswith(f"{up}.")}
        return kept | {name: value for name, value in eight.items() if name.startswith(f"{up}.")}

    groups = declared(folders / "w4a16-32g")["config_groups"]
    groups["group_1"] = declared(folders / "w8a8-channel")["config_groups"]["group_0"]
    groups["group_1"]["targets"] = [f"re:{up}"]
    folder = rewritten(
        folders / "w4a16-32g", tmp_path / "mixed", mixed, config_groups=groups, format="mixed-precision"
    )
    found, other = qformats.open(folder), qformats.open(folders / "w8a8-channel")
    assert found.tensors[f"{up}.weight"].format == f"{NAME}:w8a8-channel"
    assert found.tensors["model.layers.0.mlp.gate_proj.weight"].format == f"{NAME}:w4a16-32g"
    assert torch.equal(found.read(f"{up}.weight"), other.read(f"{up}.weight"))


def test_several_formats_are_written_and_loaded(llama, tmp_path, monkeypatch):
    """A group for each, by the names of its modules; the library and Transformers find the same."""
    package_folder("compressed-tensors", "compressed_tensors", "0.20.0")
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    from compressed_tensors.quantization import QuantizationConfig
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "mixed"
    types = {DOWN: "dense:f16", "down_proj": "fp8-channel-f16", "v_proj": "w8a16-32g"}
    qformats.export(llama, folder, format=f"{NAME}:w4a16-32g", tensor_types=types)
    found = declared(folder)
    assert found["format"] == "mixed-precision"
    read = QuantizationConfig.model_validate(found)
    groups = {
        (scheme.format, scheme.weights.num_bits): scheme.targets for scheme in read.config_groups.values()
    }
    assert groups == {
        ("pack-quantized", 4): ["Linear"],
        ("pack-quantized", 8): ["model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.v_proj"],
        ("float-quantized", 8): ["model.layers.0.mlp.down_proj"],
    }
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16, output_loading_info=True)
    assert not any(info.values())
    with torch.inference_mode():
        model(IDS)
    expected, loaded = values(folder), dict(model.named_parameters())
    assert all(torch.equal(loaded[n], expected[n].half()) for n in expected if "_proj" in n)
    with pytest.raises(ConfigError, match="can declare only one quantized format"):
        qformats.export(
            llama, tmp_path / "no", format=f"{NAME}:w4a16-32g", tensor_types={"v_proj": "gptq:4bit-32g"}
        )


def test_scales_of_activations_are_left_out_and_named(folders, tmp_path):
    def static(stored):
        more = {f"{DOWN.replace('down', 'up')}.input_scale": torch.ones(1, dtype=torch.float16)}
        return stored | more | {"model.layers.0.self_attn.k_scale": torch.ones(1, dtype=torch.float16)}

    folder = rewritten(folders / "w8a8-channel", tmp_path / "static", static)
    assert same(folder, folders / "w8a8-channel")
    left = qformats.open(folder).left_out
    assert {*left} == {f"{DOWN.replace('down', 'up')}.input_scale", "model.layers.0.self_attn.k_scale"}
    assert all("how activations are quantized" in why for why in left.values())


def test_rotated_models_are_refused(folders, tmp_path):
    applied = [{"location": "input", "targets": ["Linear"]}]
    rotated = {"config_groups": {"R4": {"type": "hadamard", "apply": applied}}}
    with pytest.raises(CheckpointError, match="R4, which is applied to activations"):
        qformats.open(rewritten(folders / "w4a16-32g", tmp_path / "rotated", transform_config=rotated))


def test_experts(tmp_path):
    model = moe.build("mixtral", tmp_path / "model")
    qformats.export(model, tmp_path / "out", format=f"{NAME}:w4a16-32g")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert sum(".experts.3." in name and name.endswith("weight_packed") for name in stored) == 6
    assert {name.removesuffix(".weight") for name in stored if name.endswith(".gate.weight")} <= {
        *declared(tmp_path / "out")["ignore"]
    }
    qformats.export(tmp_path / "out", tmp_path / "gptq", format="gptq:4bit-32g", require_exact=True)
    assert same(tmp_path / "out", tmp_path / "gptq")


def test_runs_packed_with_the_values_of_the_plain_model(folders, tmp_path):
    folder = folders / "w4a16-32g-asym"
    qformats.export(folder, tmp_path / "plain", format="dense:f32")
    packed, plain = (qformats.load_model(path, dtype="f32") for path in (folder, tmp_path / "plain"))
    with torch.inference_mode():
        first, second = (model(IDS).logits for model in (packed, plain))
    assert torch.allclose(first, second, rtol=1e-5, atol=1e-5)
