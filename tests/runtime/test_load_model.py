"""Models of every format run as their values say, and their weights stay packed."""

import shutil

import numpy as np
import pytest
import torch
from cli.command import call
from models import chatglm, glm, moe, smollm2
from models.text import PROMPTS
from oracles import hf
from oracles.llama_cpp import LlamaCpp
from transformers import AutoModelForCausalLM

import qformats
from qformats.runtime import PackedLayer, QuantEmbedding, QuantLinear, tokenizer
from qformats.runtime.experts import QuantExperts

IDS = [5, 17, 90, 3, 3, 44, 61, 8, 0, 95, 33, 12, 70, 2, 51]
TOLERANCE = 1e-5
FORMATS = [
    "gguf:q4_0",
    "gguf:q4_1",
    "gguf:q5_0",
    "gguf:q5_1",
    "gguf:q8_0",
    "gguf:bf16",
    "gptq:4bit-64g",
    "gptq:3bit-32g-asym",
    "bitsandbytes:nf4",
    "bitsandbytes:nf4-dq",
    "bitsandbytes:fp4",
    "bitsandbytes:int8",
    "glm:int4",
    "glm:int8",
    "dense:bf16",
]


def load(path, **options):
    """On the CPU in float32, with the attention that the oracle has."""
    model = qformats.load_model(path, device="cpu", **options)
    model.set_attn_implementation("eager")
    return model


def packed_layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedLayer)}


def assert_same_model(model, reference, ids=IDS):
    """Logits at every position, and so the most likely ids."""
    ours, theirs = hf.logits(model, ids), hf.logits(reference, ids)
    assert np.abs(ours - theirs).max() < TOLERANCE
    assert np.array_equal(ours.argmax(-1), theirs.argmax(-1))


@pytest.mark.parametrize("format", FORMATS)
def test_logits_are_those_of_the_values(format, exported):
    path = exported("llama", format)
    model = load(path)
    assert_same_model(model, hf.load(exported.dense(path)))
    stored = qformats.open(path).tensors
    packed = {name: t for name, t in stored.items() if qformats.packer(t.format).dense_dtype is None}
    assert {f"{name}.weight" for name in packed_layers(model)} == packed.keys()
    report = model.qformats_report
    assert {f"{weight.name}.weight" for weight in report.weights} == packed.keys()
    assert not model.training
    assert sum(weight.nbytes for weight in report.weights) == sum(t.nbytes for t in packed.values())
    assert {weight.format for weight in report.weights} == {t.format for t in packed.values()}
    held = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}
    # Nothing but the packed bytes and the plain numbers is in memory.
    assert sum(held.values()) <= report.nbytes + 64


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "gpt2", "llama-bias"])
@pytest.mark.parametrize("format", ["gguf:q8_0", "bitsandbytes:nf4"])
def test_architectures(name, format, exported):
    path = exported(name, format)
    assert_same_model(load(path), hf.load(exported.dense(path)))


def test_transposed_modules_become_linear_layers(exported):
    model = load(exported("gpt2", "glm:int8"))
    layer = model.transformer.h[0].attn.c_attn
    assert isinstance(layer, QuantLinear)
    assert (layer.in_features, layer.out_features) == (64, 192)
    assert layer.bias is not None
    plain = load(exported.model("gpt2"))
    assert type(plain.transformer.h[0].attn.c_attn).__name__ == "Conv1D"
    assert_same_model(plain, hf.load(exported.model("gpt2")))


def test_calibrated_with_columns_in_another_order(exported, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(PROMPTS) * 8)
    options = {"calibration": str(text), "samples": "2", "sequence-length": "16", "rounds": "1"}
    format = "gptq:4bit-32g-actorder"
    qformats.export(
        exported.model("llama"), tmp_path / "out", format=format, quantizer="gptq", quantizer_options=options
    )
    model = load(tmp_path / "out")
    orders = [layer.packed().unpack().g_idx for layer in packed_layers(model).values()]
    assert any(order is not None for order in orders)
    assert_same_model(model, hf.load(exported.dense(tmp_path / "out")))
    # The same, without a folder in between.
    direct = load(exported.model("llama"), format=format, quantizer="gptq", quantizer_options=options)
    for name, layer in packed_layers(model).items():
        other = packed_layers(direct)[name].packed()
        assert all(torch.equal(value, other.fields[field]) for field, value in layer.packed().fields.items())


@pytest.mark.parametrize("bits", [4, 8])
def test_chatglm_folders(bits, tmp_path):
    reference = chatglm.save(chatglm.model(), tmp_path / "in", bits=bits)
    model = load(tmp_path / "in")
    assert type(model).__name__ == "GlmForCausalLM"
    # Only q, k and v are split, and stay packed like the rest.
    assert len(packed_layers(model)) == 2 * 6
    assert_same_model(model, reference)


@pytest.mark.parametrize("name", ["mixtral", "qwen2-moe"])
@pytest.mark.parametrize("format", ["bitsandbytes:nf4", "glm:int8", None])
def test_mixtures_of_experts(name, format, exported, tmp_path):
    source = moe.build(name, tmp_path / name)
    path = source
    if format is not None:
        path = tmp_path / "out"
        qformats.export(source, path, format=format, quantizer="rtn")
    model = load(path)
    assert_same_model(model, hf.load(exported.dense(path) if format else source))
    experts = model.model.layers[1].mlp.experts
    assert isinstance(experts, QuantExperts) == (format is not None)
    if format is not None:
        layers = [module for module in experts.modules() if isinstance(module, QuantLinear)]
        assert len(layers) == 4 * 3
        assert {layer.packer.name for layer in layers} == {format}


def test_experts_pass_gradients_to_their_input(exported, tmp_path):
    source = moe.build("mixtral", tmp_path / "in")
    qformats.export(source, tmp_path / "out", format="glm:int8")
    found = []
    for model in (load(tmp_path / "out"), hf.load(exported.dense(tmp_path / "out"))):
        states = model.get_input_embeddings()(torch.tensor([IDS])).detach().requires_grad_()
        model(inputs_embeds=states).logits.square().sum().backward()
        found.append(states.grad)
    assert (found[0] - found[1]).norm() < 1e-5 * found[1].norm()


@pytest.mark.parametrize("format", ["gguf:q8_0", "gguf:q4_0"])
def test_tied_embeddings_share_their_packed_weight(format, exported):
    path = exported("qwen2", format)
    model = load(path)
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(table, QuantEmbedding)
    assert isinstance(head, QuantLinear)
    assert head.is_tied
    assert head.weight.data_ptr() == table.weight.data_ptr()
    weights = {weight.name: weight for weight in model.qformats_report.weights}
    assert weights["lm_head"].nbytes == 0
    assert (
        weights["model.embed_tokens"].nbytes
        == qformats.open(path).tensors["model.embed_tokens.weight"].nbytes
    )


def test_tied_plain_embeddings_are_one_tensor(exported):
    model = load(exported("qwen2", "bitsandbytes:int8"))
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("dtype", ["bf16", "float16", torch.bfloat16])
def test_plain_numbers_are_cast_and_packed_ones_are_not(dtype, exported):
    path = exported("llama", "glm:int4")
    model, wide = load(path, dtype=dtype), load(path)
    half = torch.float16 if dtype == "float16" else torch.bfloat16
    assert model.dtype == half
    assert {p.dtype for p in model.parameters() if p.is_floating_point()} == {half}
    with torch.no_grad():
        logits = model(torch.tensor([IDS])).logits
        assert logits.dtype == half
        assert (logits.float() - wide(torch.tensor([IDS])).logits).abs().max() < 1
    for name, layer in packed_layers(model).items():
        assert all(
            torch.equal(value, packed_layers(wide)[name].packed().fields[field])
            for field, value in layer.packed().fields.items()
        )


def test_nothing_shares_memory_with_the_file(exported, tmp_path):
    """A model that is loaded does not change when its file does."""
    path = tmp_path / "model.gguf"
    path.write_bytes(exported("llama", "gguf:q4_0").read_bytes())
    model = load(path)
    before = hf.logits(model, IDS)
    with path.open("r+b") as file:
        file.seek(-100_000, 2)
        file.write(bytes(100_000))
    assert np.array_equal(hf.logits(model, IDS), before)


def test_gradients_reach_the_embeddings(exported):
    path = exported("llama", "gguf:q4_0")
    grads = []
    for model in (load(path), hf.load(exported.dense(path))):
        table = model.get_input_embeddings()
        states = table(torch.tensor([IDS])).detach().requires_grad_()
        model(inputs_embeds=states).logits.square().sum().backward()
        grads.append(states.grad)
    assert (grads[0] - grads[1]).norm() < 1e-5 * grads[1].norm()


@pytest.mark.parametrize("format", ["gguf:q4_0", "gptq:4bit-64g", "bitsandbytes:nf4-dq", "glm:int8"])
def test_arranged_models_compute_the_same(format, exported):
    path = exported("qwen2", format)
    model = load(path)
    before = {name: layer.packed() for name, layer in packed_layers(model).items()}
    assert all(layer.arrange() for layer in packed_layers(model).values())
    assert_same_model(model, hf.load(exported.dense(path)))
    for name, layer in packed_layers(model).items():
        after = layer.packed().fields
        assert all(torch.equal(value, after[field]) for field, value in before[name].fields.items())


def test_greedy_text_is_that_of_llama_cpp(tmp_path):
    """llama.cpp rounds activations to 8 bits: probabilities differ a little, and so does a long text."""
    path = tmp_path / "demo.gguf"
    qformats.export("demo", path, format="gguf:q4_0")
    model = load(path)
    with LlamaCpp(path) as gguf:
        ids = gguf.tokenize("The king and the queen")
        ours, theirs = hf.log_probs(model, ids), gguf.log_probs(ids)
        assert (np.exp(theirs.astype(np.float64)) * (theirs - ours)).sum(-1).mean() < 5e-3
        assert hf.greedy(model, ids, 8) == gguf.greedy(ids, 8)


def test_generates_what_greedy_search_finds(exported):
    path = exported("qwen2", "gguf:q4_0")
    model, start = load(path), torch.tensor([IDS, IDS[::-1]])
    model.generation_config.eos_token_id = None
    settings = {"attention_mask": torch.ones_like(start), "do_sample": False, "pad_token_id": 0}
    continued = model.generate(start, max_new_tokens=8, **settings)
    for row, ids in enumerate(start.tolist()):
        assert continued[row, len(ids) :].tolist() == hf.greedy(exported.dense(path), ids, 8)


def test_a_real_model(tmp_path):
    path = smollm2.path()
    model = load(path)
    assert model.lm_head.is_tied
    assert model.qformats_report.nbytes < 1.02 * path.stat().st_size
    text = tokenizer(qformats.open(path))
    prompt = text("The capital of France is", return_tensors="pt")
    continued = model.generate(**prompt, max_new_tokens=3, do_sample=False)
    assert "Paris" in text.decode(continued[0, prompt["input_ids"].shape[1] :])


def test_tokenizers_are_those_of_the_files(exported):
    for path in (exported.model("llama-spm"), exported("llama-spm", "gguf:q8_0")):
        ours, theirs = tokenizer(qformats.open(path)), hf.tokenizer_json(exported.model("llama-spm"))
        for prompt in PROMPTS:
            assert ours(prompt)["input_ids"] == theirs.encode(prompt).ids, prompt


def test_glm_tokenizers(tmp_path):
    folder = glm.build("glm4", tmp_path / "glm4")
    ids = tokenizer(qformats.open(folder))("philosophy")["input_ids"]
    assert ids[-1] == hf.tokenizer_json(folder).encode("philosophy").ids[-1]


def test_settings_of_generate_come_along(exported):
    folder = exported.model("llama")
    settings = AutoModelForCausalLM.from_pretrained(folder).generation_config
    assert load(folder).generation_config.eos_token_id == settings.eos_token_id


def test_what_is_not_read_is_said_once(tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(qformats.open("demo").path, folder)
    (folder / "pytorch_model.bin").write_bytes(b"older")
    (told,) = qformats.open(folder).notes
    for given in (folder, qformats.open(folder)):
        with pytest.warns(UserWarning, match="Not read") as caught:
            qformats.load_model(given, device="cpu")
        assert [str(each.message) for each in caught] == [f"model: {told}"]
    result = call(capsys, "generate", folder, "The", "-n", "1", "--device", "cpu")
    assert result.code == 0
    assert result.err.count(f"qformats: model: {told}\n") == result.err.count("Not read") == 1
    quiet = call(capsys, "-q", "generate", folder, "The", "-n", "1", "--device", "cpu")
    assert "Not read" not in quiet.err
