"""Experts are calibrated one by one, each on the tokens that the router sends there."""

import json

import numpy as np
import pytest
import torch
from models.architectures import build
from oracles import hf
from oracles.llama_cpp import LlamaCpp
from safetensors.torch import load_file, save_file

import qformats
from qformats.calibration import Settings
from qformats.calibration.text import sample_tokens
from qformats.work.progress import Silent

TEXT = (
    "It was the best of times, it was the worst of times; 1234567890 things were said, and more were not. "
    * 60
)
OPTIONS = {"samples": "12", "sequence-length": "32"}
LAYERS = 3


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(TEXT)
    return file


@pytest.fixture(scope="module", params=["mixtral", "deepseek_v3", "gpt_oss"])
def folder(request, tmp_path_factory):
    sizes = {"mixtral": {}, "gpt_oss": {"intermediate_size": 64}}.get(
        request.param, {"moe_intermediate_size": 64}
    )
    return build(request.param, tmp_path_factory.mktemp("moe") / request.param, **sizes)


def _calibrated(folder, out, text, log, rules=None, format="gptq:4bit-32g", **options):
    options = {**OPTIONS, "calibration": str(text), "log": str(log), **options}
    report = qformats.export(
        folder,
        out,
        format=format,
        quantizer="gptq",
        quantizer_options=options,
        tensor_types=rules or {},
    )
    return {entry["layer"]: entry for entry in map(json.loads, log.read_text().splitlines())}, report.notes


def _routed(folder, text):
    """Inputs of every expert of every layer, as Transformers' own modules route them."""
    model, found = hf.load(folder), {}
    model.config._experts_implementation = "eager"

    def note(name):
        def hook(module, args):
            states, index = args[0], args[1]
            for expert in range(module.num_experts):
                found.setdefault((name, expert), []).append(states[(index == expert).any(-1)])

        return hook

    for name, module in model.named_modules():
        if name.endswith(".experts"):
            module.register_forward_pre_hook(note(name))
    tokens = sample_tokens(qformats.open(folder), Settings(str(text), 12, 32), Silent())
    with torch.no_grad():
        model(tokens)
    return {key: torch.cat(parts) for key, parts in found.items()}


def test_tokens_of_each_expert_are_those_that_the_router_sends(folder, text, tmp_path):
    """Of the first block with experts, where nothing else is quantized."""
    inputs = _routed(folder, text)
    rules = {"^(?!.*experts[.][0-9]).*": "f32"}
    log, _ = _calibrated(folder, tmp_path / "out", text, tmp_path / "log", rules, **{"correct": "no"})
    block = min(name for name, _ in inputs)
    number = block.split(".")[2]
    seen = {
        (int(layer.split("experts.")[1].split(".")[0]), layer.rpartition("experts.")[2].split(".")[1]): entry[
            "tokens"
        ]
        for layer, entry in log.items()
        if f"layers.{number}." in layer
    }
    assert len(seen) == 3 * len([name for name, _ in inputs if name == block])
    for (expert, _), tokens in seen.items():
        assert tokens == len(inputs[block, expert])


def test_experts_that_saw_too_little_are_named(text, tmp_path):
    folder = build("deepseek_v3", tmp_path / "deepseek_v3", moe_intermediate_size=64)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.gate.e_score_correction_bias"][3] = -1000.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    log, notices = _calibrated(folder, tmp_path / "out", text, tmp_path / "log", samples="4")
    least = {}
    for layer, entry in log.items():
        if ".experts." in layer:
            expert = layer.rpartition(".")[0].rpartition(".")[0]
            least[expert] = min(entry["tokens"], least.get(expert, entry["tokens"]))
    assert len(least) == 2 * 8
    assert least["model.layers.1.mlp.experts.3"] == 0
    few = {expert: tokens for expert, tokens in least.items() if tokens < 64}
    assert len(few) < len(least)
    (told,) = [notice for notice in notices if "saw fewer tokens" in notice]
    assert told.startswith(
        f"{len(few)} of 16 experts saw fewer tokens of the calibration text than their layers have"
    )
    assert "model.layers.1.mlp.experts.3 (0 tokens)" in told
    packed = qformats.open(tmp_path / "out").tensors["model.layers.1.mlp.experts.3.up_proj.weight"]
    change = packed.dequantize() - qformats.open(folder).read("model.layers.1.mlp.experts.3.up_proj.weight")
    assert change.norm() < 0.15 * packed.dequantize().norm()


def test_each_expert_is_better_than_rounded_on_its_own_tokens(folder, text, tmp_path):
    inputs = _routed(folder, text)
    rules = {"^(?!.*experts[.][0-9]).*": "f32"}
    _calibrated(folder, tmp_path / "gptq", text, tmp_path / "log", rules)
    qformats.export(folder, tmp_path / "rtn", format="gptq:4bit-32g", quantizer="rtn", tensor_types=rules)
    plain, gptq, rtn = (qformats.open(path) for path in (folder, tmp_path / "gptq", tmp_path / "rtn"))
    block = min(name for name, _ in inputs)
    errors = []
    for (name, expert), rows in inputs.items():
        if name != block or len(rows) < 100:
            continue
        for key in plain.tensors:
            label = key.rpartition(".experts.")[2]
            if f"layers.{block.split('.')[2]}." in key and label in (
                f"{expert}.w1.weight",
                f"{expert}.gate_proj.weight",
            ):
                wanted = rows @ plain.read(key).t()
                errors.append([float((rows @ other.read(key).t() - wanted).norm()) for other in (gptq, rtn)])
    assert errors
    assert all(ours < theirs for ours, theirs in errors)


def test_stacks_of_a_file_hold_calibrated_experts(text, tmp_path):
    folder = build("mixtral", tmp_path / "mixtral")
    log, _ = _calibrated(folder, tmp_path / "m.gguf", text, tmp_path / "log", format="gguf:q4_0")
    assert len([layer for layer in log if "experts" in layer]) == LAYERS * 6 * 3
    file = qformats.open(tmp_path / "m.gguf")
    qformats.export(folder, tmp_path / "rtn.gguf", format="gguf:q4_0", quantizer="rtn")
    rounded = qformats.open(tmp_path / "rtn.gguf")
    stack = "blk.1.ffn_up_exps.weight"
    assert file.stored[stack].format == "gguf:q4_0"
    assert not torch.equal(file.stored[stack].dequantize(), rounded.stored[stack].dequantize())
    before = qformats.open(folder)
    with LlamaCpp(tmp_path / "m.gguf") as gguf:
        assert np.isfinite(gguf.log_probs(list(range(3, 40)))).all()
    for number in range(6):
        name = f"model.layers.1.block_sparse_moe.experts.{number}.w3.weight"
        change = (file.stored[stack].dequantize()[number] - before.read(name)).norm()
        assert change < 0.15 * before.read(name).norm()


def test_parts_of_a_layer_are_rounded_once(text, tmp_path):
    """Keys and values of latent attention are one layer, of which a file keeps keys transposed."""
    folder = build("deepseek_v3", tmp_path / "deepseek_v3", moe_intermediate_size=64, num_hidden_layers=2)
    _calibrated(folder, tmp_path / "gptq.gguf", text, tmp_path / "log", format="gguf:q4_0")
    qformats.export(folder, tmp_path / "rtn.gguf", format="gguf:q4_0", quantizer="rtn")
    one, other = (qformats.open(tmp_path / file).stored for file in ("gptq.gguf", "rtn.gguf"))
    for name in ("blk.1.attn_k_b.weight", "blk.1.attn_v_b.weight"):
        assert torch.equal(one[name].dequantize(), other[name].dequantize()), name
    name = "blk.1.attn_kv_a_mqa.weight"
    assert not torch.equal(one[name].dequantize(), other[name].dequantize())
