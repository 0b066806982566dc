"""gpt-oss as it is published: experts in MXFP4, which GGUF holds unchanged."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, dequantize, quantize
from models.architectures import build
from oracles import hf
from oracles.llama_cpp import LlamaCpp
from safetensors.torch import load_file, save_file

import qformats
from qformats.errors import CheckpointError, ConfigError
from qformats.runtime.experts import QuantExperts
from qformats.runtime.linear import QuantLinear

MXFP4 = GGMLQuantizationType.MXFP4
IDS = list(range(3, 67))


def _published(blocks):
    """Blocks and scales as gpt-oss has them, of ``[E, rows, bytes]`` in GGUF's order."""
    experts, rows, width = blocks.shape
    blocks = blocks.reshape(experts, rows, width // 17, 17)
    nibbles = np.concatenate([blocks[..., 1:] & 15, blocks[..., 1:] >> 4], -1)
    return nibbles[..., 0::2] | nibbles[..., 1::2] << 4, blocks[..., 0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder; beside it, the same model in plain numbers as Transformers decodes it."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    path = tmp_path_factory.mktemp("gpt-oss")
    plain = build("gpt_oss", path / "plain", "bfloat16")
    tensors = load_file(plain / "model.safetensors")
    packed = {}
    for name, value in list(tensors.items()):
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            rows = value.float().transpose(1, 2).contiguous().numpy()
            blocks, scales = map(
                torch.from_numpy, _published(quantize(rows, MXFP4).reshape(*rows.shape[:2], -1))
            )
            packed |= {f"{name}_blocks": blocks.contiguous(), f"{name}_scales": scales.contiguous()}
            tensors[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16).contiguous()
        else:
            packed[name] = value
    save_file(tensors, plain / "model.safetensors", metadata={"format": "pt"})
    (path / "published").mkdir()
    for file in plain.iterdir():
        if file.suffix != ".safetensors":
            (path / "published" / file.name).write_bytes(file.read_bytes())
    config = json.loads((plain / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (path / "published" / "config.json").write_text(json.dumps(config))
    save_file(packed, path / "published" / "model.safetensors", metadata={"format": "pt"})
    return path / "published"


def test_values_are_those_of_transformers(folder):
    model, plain = qformats.open(folder), load_file(folder.parent / "plain" / "model.safetensors")
    matrices = {name: value for name, value in plain.items() if "mlp.experts" not in name}
    for name in plain.keys() - matrices.keys():
        for number, own in enumerate(plain[name]):
            owner, _, last = name.rpartition(".")
            rows, ending = (own, "bias") if "bias" in last else (own.t(), "weight")
            if "down" in last:
                matrices[f"{owner}.{number}.down_proj.{ending}"] = rows
            else:
                matrices[f"{owner}.{number}.gate_proj.{ending}"] = rows[0::2]
                matrices[f"{owner}.{number}.up_proj.{ending}"] = rows[1::2]
    assert model.tensors.keys() == matrices.keys()
    for name, tensor in model.tensors.items():
        assert torch.equal(tensor.dequantize(), matrices[name].float()), name
        assert torch.equal(tensor.read(1, 3).dequantize(), matrices[name][1:3].float())
    assert model.tensors["model.layers.0.mlp.experts.1.down_proj.weight"].format == "gguf:mxfp4"


def test_a_file_holds_the_same_blocks(folder, tmp_path):
    report = qformats.export(folder, tmp_path / "m.gguf", format="gguf:mxfp4_moe")
    stacks = [tensor for tensor in report.tensors if tensor.name.endswith("_exps.weight")]
    assert len(stacks) == 3 * 4
    assert {tensor.format for tensor in stacks} == {"gguf:mxfp4"}
    plain = load_file(folder.parent / "plain" / "model.safetensors")
    for tensor in GGUFReader(tmp_path / "m.gguf").tensors:
        if not tensor.name.endswith("_exps.weight"):
            continue
        _, block, kind, _ = tensor.name.split(".")
        found = torch.from_numpy(dequantize(tensor.data, MXFP4))
        if kind == "ffn_down_exps":
            wanted = plain[f"model.layers.{block}.mlp.experts.down_proj"]
        else:
            wanted = plain[f"model.layers.{block}.mlp.experts.gate_up_proj"][..., int("up" in kind) :: 2]
        assert torch.equal(found, wanted.float().transpose(1, 2))
    qformats.export(tmp_path / "m.gguf", tmp_path / "back", format="dense:bf16")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert all(
        torch.equal(back[name], value) for name, value in plain.items() if "proj" in name and value.ndim == 3
    )


def test_it_runs_packed_and_in_llama_cpp(folder, tmp_path):
    reference = hf.load(folder.parent / "plain")
    model = qformats.load_model(folder, device="cpu")
    experts = model.model.layers[1].mlp.experts
    assert isinstance(experts, QuantExperts)
    layers = [module for module in experts.modules() if isinstance(module, QuantLinear)]
    assert {layer.packer.name for layer in layers} == {"gguf:mxfp4"}
    assert len(layers) == 3 * 6
    theirs = hf.log_probs(reference, IDS)
    assert np.abs(hf.log_probs(model, IDS) - theirs).max() < 1e-4
    qformats.export(folder, tmp_path / "m.gguf", format="gguf:f32")
    with LlamaCpp(tmp_path / "m.gguf") as gguf:
        assert np.abs(gguf.log_probs(IDS) - theirs).max() < 1e-4


def test_a_stack_without_scales_is_named(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.2.mlp.experts.down_proj_scales"]
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"down_proj_blocks.*scales missing"):
        qformats.open(tmp_path)


def test_folders_hold_their_values(folder, tmp_path):
    plain = load_file(folder.parent / "plain" / "model.safetensors")
    qformats.export(folder, tmp_path / "dense", format="dense:bf16")
    written = load_file(tmp_path / "dense" / "model.safetensors")
    assert written.keys() == plain.keys()
    assert all(torch.equal(value, plain[name]) for name, value in written.items())
    # What is not quantized in the source stays so unless a rule says otherwise.
    qformats.export(folder, tmp_path / "nf4", format="bitsandbytes:nf4")
    packed = qformats.open(tmp_path / "nf4").tensors
    assert {tensor.format for name, tensor in packed.items() if "experts" in name} == {
        "bitsandbytes:nf4",
        "dense:bf16",
    }
    name = "model.layers.0.mlp.experts.1.up_proj.weight"
    wanted = plain["model.layers.0.mlp.experts.gate_up_proj"][1, :, 1::2].t().float().contiguous()
    expected = qformats.packer("bitsandbytes:nf4").encode_reference(wanted)
    assert torch.equal(packed[name].dequantize(), expected.dequantize())
    assert packed["model.layers.0.self_attn.q_proj.weight"].format == "dense:bf16"


def test_other_folders_hold_the_same_codes(folder, tmp_path):
    """MXFP4 of compressed-tensors: the same numbers, and no value changes."""
    report = qformats.export(folder, tmp_path / "ct", format="compressed-tensors:mxfp4", require_exact=True)
    assert report.types["compressed-tensors:mxfp4"] == 4 * 6 * 3
    one, other = qformats.open(folder), qformats.open(tmp_path / "ct")
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor.dequantize(), other.tensors[name].dequantize()), name
    model = qformats.load_model(tmp_path / "ct", device="cpu")
    assert np.abs(hf.log_probs(model, IDS) - hf.log_probs(folder.parent / "plain", IDS)).max() < 1e-4


def test_a_file_becomes_the_folder_again(folder, tmp_path):
    """The same bytes, zeros with a sign too; Transformers reads the same experts, and llama.cpp the same file."""
    from transformers import AutoModelForCausalLM
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    stored = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.experts.down_proj_blocks"
    stored[name][1, 2, 0, :4] = 0x88
    source = tmp_path / "signed"
    source.mkdir()
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (source / file.name).write_bytes(file.read_bytes())
    save_file(stored, source / "model.safetensors", metadata={"format": "pt"})
    qformats.export(source, tmp_path / "m.gguf", format="gguf:mxfp4_moe")
    for before, target in ((tmp_path / "m.gguf", "back"), (source, "copy")):
        report = qformats.export(
            before, tmp_path / target, format="dense:bf16", container="mxfp4", require_exact=before == source
        )
        assert {tensor.exact for tensor in report.tensors if tensor.name.endswith("_blocks")} == {"always"}
        written = load_file(tmp_path / target / "model.safetensors")
        experts = [key for key in stored if key.endswith(("_blocks", "_scales"))]
        assert len(experts) == 4 * 4
        assert {key for key in written if "experts" in key} == {key for key in stored if "experts" in key}
        assert all(torch.equal(written[key], stored[key]) for key in experts)
        assert all(written[key].equal(stored[key]) for key in stored if key.endswith("_bias"))
    config = json.loads((tmp_path / "copy" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "mxfp4"
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "copy", output_loading_info=True)
    assert not any(info.values())
    loaded = dict(model.named_parameters())
    for key in (key.removesuffix("_blocks") for key in experts if key.endswith("_blocks")):
        blocks, scales = stored[f"{key}_blocks"], stored[f"{key}_scales"]
        expected = convert_moe_packed_tensors(blocks, scales, dtype=loaded[key].dtype)
        assert torch.equal(loaded[key], expected), key


def test_only_experts_that_are_in_mxfp4_are_written_so(folder, tmp_path):
    plain = folder.parent / "plain"
    with pytest.raises(ConfigError, match=r"experts in gguf:mxfp4, for mxfp4.*Make a file first"):
        qformats.export(plain, tmp_path / "no", format="dense:bf16", container="mxfp4")
    with pytest.raises(ConfigError, match="a model of type 'llama' without such experts"):
        qformats.export("demo", tmp_path / "no", format="dense:bf16", container="mxfp4")
    assert not (tmp_path / "no").exists()
