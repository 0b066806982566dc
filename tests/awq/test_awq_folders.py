"""Folders: written, read, converted exactly, run; and what Transformers makes of what they declare."""

from __future__ import annotations

import json

import pytest
import torch
from models import moe, tiny
from models.records import forget
from models.tensors import same, values
from safetensors.torch import load_file, save_file

import qformats
from qformats.errors import CheckpointError, InexactExportError, ModelNotFoundError
from qformats.numbers import pack_bits
from qformats_awq import layouts
from qformats_awq.family import AWQFamily
from qformats_awq.layouts import separate, to_fast

IDS = torch.tensor([[1, 5, 9, 33, 7, 2, 60, 12]])
DOWN = "model.layers.1.mlp.down_proj"
KEYS = ["quant_method", "zero_point", "group_size", "bits", "version", "modules_to_not_convert"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.build("llama", tmp_path_factory.mktemp("models") / "llama", "float16")


@pytest.fixture(scope="module")
def folder(llama, tmp_path_factory):
    out = tmp_path_factory.mktemp("awq") / "out"
    qformats.export(llama, out, format="awq:4bit-32g")
    return out


def declared(folder):
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def declare(folder, **changes):
    content = json.loads((folder / "config.json").read_text())
    content["quantization_config"] |= changes
    (folder / "config.json").write_text(json.dumps(content))


def copy(folder, target, tensors=lambda stored: stored):
    target.mkdir()
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (target / file.name).write_bytes(file.read_bytes())
    save_file(tensors(load_file(folder / "model.safetensors")), target / "model.safetensors")
    return forget(target)


def test_written_and_read(llama, folder):
    assert list(declared(folder)) == KEYS
    assert declared(folder) == {
        "quant_method": "awq",
        "zero_point": True,
        "group_size": 32,
        "bits": 4,
        "version": "gemm",
        "modules_to_not_convert": None,
    }
    source, packer = load_file(llama / "model.safetensors"), qformats.packer("awq:4bit-32g")
    found = qformats.open(folder)
    for name, weight in source.items():
        if "_proj" in name:
            assert found.tensors[name].format == "awq:4bit-32g"
            assert torch.equal(found.read(name), packer.encode_reference(weight).dequantize())
        else:
            assert torch.equal(found.read(name), weight.float())


def test_gptq_and_back_without_any_change(folder, tmp_path):
    qformats.export(folder, tmp_path / "gptq", format="gptq:4bit-32g-asym", require_exact=True)
    assert same(folder, tmp_path / "gptq")
    qformats.export(tmp_path / "gptq", tmp_path / "back", format="awq:4bit-32g", require_exact=True)
    first, second = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "back"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_symmetric_gptq_and_q4_0(llama, tmp_path):
    """Zero points of 8 everywhere."""
    qformats.export(llama, tmp_path / "gptq", format="gptq:4bit-32g", quantizer="rtn")
    qformats.export(tmp_path / "gptq", tmp_path / "awq", format="awq:4bit-32g", require_exact=True)
    qformats.export(tmp_path / "awq", tmp_path / "m.gguf", format="gguf:q4_0", require_exact=True)
    # Eight steps are exact in float16, so that a float minimum holds them as well.
    qformats.export(tmp_path / "awq", tmp_path / "q4_1.gguf", format="gguf:q4_1", require_exact=True)
    qformats.export(tmp_path / "m.gguf", tmp_path / "back", format="gptq:4bit-32g", require_exact=True)
    assert same(tmp_path / "gptq", tmp_path / "awq")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("gptq", "back"))
    assert all(torch.equal(first[name], second[name]) for name in first if "_proj" in name)


def test_q5_0_holds_every_zero_point_and_q4_1_does_not(folder, tmp_path):
    qformats.export(folder, tmp_path / "m.gguf", format="gguf:q5_0", require_exact=True)
    qformats.export(tmp_path / "m.gguf", tmp_path / "dense", format="dense:f32")
    before, after = values(folder), values(tmp_path / "dense")
    assert all(torch.equal(after[name] + 0.0, value + 0.0) for name, value in before.items())
    with pytest.raises(InexactExportError, match="float16"):
        qformats.export(folder, tmp_path / "q4_1.gguf", format="gguf:q4_1", require_exact=True)
    assert not (tmp_path / "q4_1.gguf").exists()


def test_more_than_sixteen_levels_are_refused_with_the_reason(llama, tmp_path):
    qformats.export(llama, tmp_path / "gptq", format="gptq:8bit-32g", quantizer="rtn")
    with pytest.raises(InexactExportError, match=r"need \d+ codes, but there are only 16"):
        qformats.export(tmp_path / "gptq", tmp_path / "awq", format="awq:4bit-32g", require_exact=True)
    assert not (tmp_path / "awq").exists()


def test_modules_that_stay_plain_are_listed_as_transformers_reads_them(llama, tmp_path):
    """Its own code tells which modules it takes for quantized."""
    from transformers import AutoConfig, AutoModelForCausalLM, AwqConfig
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    out = tmp_path / "out"
    qformats.export(llama, out, format="awq:4bit-32g", tensor_types={DOWN: "dense:f16"})
    found = declared(out)
    assert DOWN in found["modules_to_not_convert"]
    assert qformats.open(out).tensors[f"{DOWN}.weight"].format == "dense:f16"
    read = AwqConfig.from_dict(dict(found))
    assert (read.bits, read.group_size, read.zero_point, read.format) == (4, 32, True, "gemm")
    config = AutoConfig.from_pretrained(out)
    del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    skipped = HfQuantizer.get_modules_to_not_convert(
        model, read.modules_to_not_convert, model._keep_in_fp32_modules, add_default_skips=True
    )
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    taken = {name for name in linear if should_convert_module(name, skipped)}
    stored = load_file(out / "model.safetensors")
    assert taken == {name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")}


@pytest.mark.parametrize("name", ["mixtral", "qwen2-moe"])
def test_experts(name, tmp_path):
    """Experts are quantized one by one; routers stay plain."""
    model = moe.build(name, tmp_path / "model")
    qformats.export(model, tmp_path / "out", format="awq:4bit-32g")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    experts = [name for name in stored if ".experts.3." in name and name.endswith("qweight")]
    assert len(experts) == 6
    routers = [name for name in stored if name.endswith(".gate.weight")]
    assert len(routers) == 2
    assert {name.removesuffix(".weight") for name in routers} <= {
        *declared(tmp_path / "out")["modules_to_not_convert"]
    }
    qformats.export(tmp_path / "out", tmp_path / "gptq", format="gptq:4bit-32g-asym", require_exact=True)
    assert same(tmp_path / "out", tmp_path / "gptq")


def test_runs_packed_with_the_values_of_the_plain_model(folder, tmp_path):
    qformats.export(folder, tmp_path / "plain", format="dense:f32")
    packed = qformats.load_model(folder, dtype="f32")
    plain = qformats.load_model(tmp_path / "plain", dtype="f32")
    with torch.inference_mode():
        first, second = (model(IDS).logits for model in (packed, plain))
    assert torch.allclose(first, second, rtol=1e-5, atol=1e-5)
    assert qformats.open(folder).tensors["model.layers.0.mlp.up_proj.weight"].packer.spec.kernel is not None


def test_other_layouts_in_a_folder(folder, tmp_path):
    """gemv and gemv_fast, repacked from gemm by AutoAWQ's rules; Q4_1 holds the latter's float offsets."""

    def padded(values, columns):
        room = layouts.padded_groups(columns, 32)
        return torch.nn.functional.pad(values, (0, room - values.shape[1])).contiguous()

    def turned(stored, fast):
        out = {}
        for name, value in stored.items():
            module, _, field = name.rpartition(".")
            if f"{module}.qweight" not in stored:
                out[name] = value
                continue
            codes = separate(stored[f"{module}.qweight"])
            scales = stored[f"{module}.scales"].t().contiguous()
            zeros = separate(stored[f"{module}.qzeros"])
            if field == "scales":
                made = padded(scales, codes.shape[1])
                out[name] = made.t().contiguous() if fast else made
            elif field == "qweight":
                out[name] = to_fast(codes) if fast else pack_bits(codes, 4).view(torch.int32)
            elif fast:
                offset = -(scales.float() * zeros).half()
                out[name] = padded(offset, codes.shape[1]).t().contiguous()
            else:
                out[name] = pack_bits(padded(zeros, codes.shape[1]), 4).view(torch.int32)
        return out

    gemv = copy(folder, tmp_path / "gemv", lambda stored: turned(stored, fast=False))
    declare(gemv, version="gemv")
    assert same(folder, gemv)
    fast = copy(folder, tmp_path / "fast", lambda stored: turned(stored, fast=True))
    declare(fast, version="gemv_fast")
    assert qformats.open(fast).tensors[f"{DOWN}.weight"].format == "awq:4bit-32g-gemv_fast"
    qformats.export(fast, tmp_path / "m.gguf", format="gguf:q4_1", require_exact=True)
    with pytest.raises(InexactExportError, match="is not a whole number of steps of"):
        qformats.export(fast, tmp_path / "gemm", format="awq:4bit-32g", require_exact=True)
    # As llm-awq saves it: a pickled state dict with another name for the offsets, and no configuration.
    bare = copy(fast, tmp_path / "llm-awq")
    content = json.loads((bare / "config.json").read_text())
    del content["quantization_config"]
    (bare / "config.json").write_text(json.dumps(content))
    stored = load_file(bare / "model.safetensors")
    (bare / "model.safetensors").unlink()
    file = bare / "llama-w4-g32-awq-v2.pt"
    torch.save({name.replace("qzeros", "scaled_zeros"): value for name, value in stored.items()}, file)
    with pytest.warns(UserWarning, match="read as those of awq.*llm-awq"):
        assert same(fast, bare)
    with pytest.raises(ModelNotFoundError, match=r"weights alone, .* a folder with config\.json"):
        qformats.open(file)


def test_a_folder_that_declares_nothing_is_known_by_its_words(folder, tmp_path):
    bare = copy(folder, tmp_path / "bare")
    content = json.loads((bare / "config.json").read_text())
    del content["quantization_config"]
    (bare / "config.json").write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="declares no quantization; its tensors are read as those of awq"):
        assert qformats.open(bare).tensors[f"{DOWN}.weight"].format == "awq:4bit-32g"
    # AutoAWQ's first versions declared it in a file of their own.
    told = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
    (bare / "quant_config.json").write_text(json.dumps(told))
    assert same(folder, bare)


def test_scaled_activations_are_refused_by_name(folder, tmp_path):
    """MPT, Falcon, BLOOM and GPT-NeoX divide activations by them."""

    def scaled(stored):
        return stored | {"model.layers.0.mlp.act.scales": torch.ones(64, dtype=torch.float16)}

    with pytest.raises(CheckpointError, match=r"scales without qweight, by which AWQ divides"):
        qformats.open(copy(folder, tmp_path / "scaled", scaled))


def test_what_other_programs_leave_out_too_is_said():
    family, packer = AWQFamily(), qformats.packer("awq")
    with pytest.warns(UserWarning, match="m.gate stays plain and is part of the name of m.gate_proj"):
        family.to_config(packer, dense_modules=["m.gate"], packed_modules=["m.gate_proj"])
    assert "lm_head is quantized, which qformats loads" in family.limits(["lm_head"])
    assert family.limits(["model.layers.0.mlp.up_proj"]) == ""
