"""A tiny DeepSeek as it is published, FP8 in blocks, from its folder to llama.cpp's logits."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from models.architectures import build
from oracles import hf
from oracles.llama_cpp import LlamaCpp
from safetensors.torch import load_file, save_file

import qformats

IDS = list(range(3, 67))
BLOCK = 128
PLAIN = ("embed_tokens", "lm_head", "norm", "mlp.gate.weight", "e_score_correction_bias")


def blocks(weight, ue8m0):
    """Numbers and scales as DeepSeek's README has them, and what they stand for, by a rule of its own."""
    rows, columns = weight.shape
    scale = torch.empty(-(-rows // BLOCK), -(-columns // BLOCK))
    stored, values = torch.empty(rows, columns, dtype=torch.float8_e4m3fn), torch.empty(rows, columns)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            part = (slice(BLOCK * i, BLOCK * (i + 1)), slice(BLOCK * j, BLOCK * (j + 1)))
            step = weight[part].abs().max() / 448
            scale[i, j] = torch.exp2(torch.log2(step).ceil()) if ue8m0 else step
            stored[part] = (weight[part] / scale[i, j]).clamp(-448, 448).to(torch.float8_e4m3fn)
            values[part] = stored[part].float() * scale[i, j]
    return stored, scale, values


@pytest.fixture(scope="module", params=["float", "ue8m0"])
def folder(request, tmp_path_factory):
    """The folder; beside it, the same model in plain numbers."""
    path = tmp_path_factory.mktemp("deepseek")
    # Matrices of 192 and 320 rows and columns, which are no multiples of a block.
    plain = build("deepseek_v3", path / "plain", "bfloat16", hidden_size=192, moe_intermediate_size=320)
    tensors, published = load_file(plain / "model.safetensors"), {}
    for name, value in list(tensors.items()):
        if value.ndim != 2 or any(part in name for part in PLAIN):
            published[name] = value
            continue
        stored, scale, values = blocks(value.float(), request.param == "ue8m0")
        published |= {name: stored, f"{name}_scale_inv": scale}
        tensors[name] = values
    save_file(tensors, plain / "model.safetensors", metadata={"format": "pt"})
    (path / "published").mkdir()
    for file in plain.iterdir():
        if file.suffix != ".safetensors":
            (path / "published" / file.name).write_bytes(file.read_bytes())
    config = json.loads((plain / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "weight_block_size": [BLOCK, BLOCK],
        "scale_fmt": request.param,
    }
    (path / "published" / "config.json").write_text(json.dumps(config))
    save_file(published, path / "published" / "model.safetensors", metadata={"format": "pt"})
    return path / "published"


def test_from_the_folder_to_logits_in_llama_cpp(folder, tmp_path):
    model, plain = qformats.open(folder), load_file(folder.parent / "plain" / "model.safetensors")
    packed = [name for name, tensor in model.tensors.items() if tensor.format == "fp8:block"]
    # Latent projections of every layer, experts, shared ones too.
    assert len(packed) > 50
    assert all(torch.equal(model.read(name), plain[name]) for name in packed)
    theirs = hf.log_probs(hf.load(folder.parent / "plain"), IDS)
    qformats.export(folder, tmp_path / "m.gguf", format="gguf:f32", require_exact=True)
    with LlamaCpp(tmp_path / "m.gguf") as gguf:
        assert np.abs(gguf.log_probs(IDS) - theirs).max() < 1e-4
    own = qformats.load_model(folder, device="cpu")
    assert np.abs(hf.log_probs(own, IDS) - theirs).max() < 1e-4


def test_powers_of_two_are_exact_in_bfloat16(folder, tmp_path):
    """So that the file has half the bytes and the same numbers; other scales are not."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    file = tmp_path / "m.gguf"
    report = qformats.export(folder, file, format="gguf:bf16")
    model, written = qformats.open(folder), qformats.open(file)
    packed = [name for name, tensor in model.tensors.items() if tensor.format == "fp8:block"]
    same = [torch.equal(model.read(name) + 0.0, written.read(name) + 0.0) for name in packed]
    assert all(same) == (config["scale_fmt"] == "ue8m0")
    assert any("quantizes inputs of layers in FP8" in note for note in report.notes)
    with LlamaCpp(file) as gguf:
        theirs = hf.log_probs(hf.load(folder.parent / "plain"), IDS)
        assert np.abs(gguf.log_probs(IDS) - theirs).max() < 0.1
