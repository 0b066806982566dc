"""Experts run with their weights packed, whatever the form in which a model keeps them."""

import numpy as np
import pytest
import torch
from models.architectures import build
from oracles import hf
from oracles.llama_cpp import LlamaCpp

import qformats
from qformats.runtime.experts import QuantExperts
from qformats.runtime.linear import QuantLinear

IDS = list(range(5, 45))
NAMES = ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "granitemoe", "llama4"]
MATRICES = {"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}


def _experts(model):
    return {name: module for name, module in model.named_modules() if name.endswith(".experts")}


def _equal(model, reference):
    with torch.no_grad():
        ours = model(torch.tensor([IDS])).logits.float()
        theirs = reference(torch.tensor([IDS])).logits.float()
    return (ours - theirs).abs().max() < 2e-5 * theirs.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_experts_of_a_file_stay_packed(name, tmp_path):
    folder, file = build(name, tmp_path / name), tmp_path / "m.gguf"
    qformats.export(folder, file, format="gguf:q8_0")
    model = qformats.load_model(file, device="cpu")
    qformats.export(file, tmp_path / "dense", format="dense:f32")
    assert _equal(model, hf.load(tmp_path / "dense"))
    found = _experts(model)
    assert found
    for owner, experts in found.items():
        assert isinstance(experts, QuantExperts), owner
        layers = {k: m for k, m in experts.named_modules() if k.rpartition(".")[2] in MATRICES}
        assert len(layers) == 3 * experts.num_experts
        # The sizes of some matrices here do not divide into blocks: those are plain in the file.
        assert any(isinstance(layer, QuantLinear) for layer in layers.values())
        assert not any(parameter in experts.rule._parameters for parameter in ("gate_up_proj", "down_proj"))
    text = model.generate(
        torch.tensor([IDS]), max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    assert text[0, len(IDS) :].tolist() == hf.greedy(tmp_path / "dense", IDS, 4)
    with LlamaCpp(file) as gguf:
        ours, theirs = hf.log_probs(model, IDS), gguf.log_probs(IDS)
    # llama.cpp rounds activations to 8 bits, too.
    assert (np.exp(ours.astype(np.float64)) * (ours - theirs)).sum(-1).mean() < 2e-2


@pytest.mark.parametrize(
    ("name", "format"),
    [("deepseek_v3", "gptq:4bit-32g"), ("glm4_moe", "bitsandbytes:nf4"), ("qwen3_moe", "glm:int8")],
)
def test_experts_of_a_folder_stay_packed(name, format, tmp_path):
    folder = build(name, tmp_path / name, moe_intermediate_size=64)
    qformats.export(folder, tmp_path / "packed", format=format, quantizer="rtn")
    model = qformats.load_model(tmp_path / "packed", device="cpu")
    qformats.export(tmp_path / "packed", tmp_path / "dense", format="dense:f32")
    assert _equal(model, hf.load(tmp_path / "dense"))
    for experts in _experts(model).values():
        layers = [module for module in experts.modules() if isinstance(module, QuantLinear)]
        assert len(layers) == 3 * experts.num_experts
        assert {layer.packer.name for layer in layers} == {format}


def test_an_expert_of_llama_4_computes_what_the_router_sends_there(tmp_path):
    """Transformers gives every token to every expert, as zeros where it is not concerned."""
    folder = build("llama4", tmp_path / "llama4", intermediate_size=64, intermediate_size_mlp=96)
    model = qformats.load_model(folder, device="cpu", format="bitsandbytes:nf4")
    seen, sent = {}, {}

    def note(name):
        def hook(module, args):
            seen[name] = seen.get(name, 0) + len(args[0])

        return hook

    def chosen(owner):
        def hook(module, args, output):
            top = output[1].topk(model.config.num_experts_per_tok, -1).indices
            for number in top.flatten().tolist():
                name = f"{owner}.experts.{number}.gate_proj"
                sent[name] = sent.get(name, 0) + 1

        return hook

    for name, module in model.named_modules():
        if name.endswith("gate_proj") and ".experts." in name:
            module.register_forward_pre_hook(note(name))
        elif name.endswith("feed_forward.router"):
            module.register_forward_hook(chosen(name.rpartition(".")[0]))
    with torch.no_grad():
        model(torch.tensor([IDS]))
    assert seen == sent
    assert sum(seen.values()) == 2 * len(IDS) * model.config.num_experts_per_tok


@pytest.mark.parametrize("name", ["mixtral", "granitemoe"])
def test_tokens_one_by_one_take_the_chosen_experts(name, tmp_path, monkeypatch):
    """Experts that lie together, through the kernels of a GPU, which Triton's interpreter runs here."""
    pytest.importorskip("triton", reason="needs Triton")
    if torch.cuda.is_available():
        pytest.skip("the interpreter runs where there is no CUDA device")
    monkeypatch.setenv("QFORMATS_KERNEL", "triton")
    folder = build(name, tmp_path / name, num_hidden_layers=1)
    qformats.export(folder, tmp_path / "m.gguf", format="gguf:q8_0")
    model = qformats.load_model(tmp_path / "m.gguf", device="cpu")
    ids = torch.tensor([IDS[:4]])
    with torch.no_grad():
        expected = model(ids).logits
        experts = list(_experts(model).values())
        for module in experts:
            for layer in module.modules():
                if isinstance(layer, QuantLinear):
                    assert layer.arrange()
            assert module.stack()
        assert (model(ids).logits - expected).abs().max() < 2e-5 * expected.abs().max()
        before = [layer.packed() for layer in experts[0].modules() if isinstance(layer, QuantLinear)]
        # Moving takes them apart and puts them together again.
        model.to(torch.float32)
        assert all(module._stacks for module in experts)
        assert (model(ids).logits - expected).abs().max() < 2e-5 * expected.abs().max()
    after = [layer.packed() for layer in experts[0].modules() if isinstance(layer, QuantLinear)]
    for one, other in zip(before, after, strict=True):
        assert all(torch.equal(one.fields[key], other.fields[key]) for key in one.fields)
