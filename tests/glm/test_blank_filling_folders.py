"""ChatGLM-6B folders and GLM-130B's ranks run as they are: packed weights stay packed, numbers are upstream's."""

from __future__ import annotations

import json

import pytest
import torch
from cli.command import call
from models import chatglm
from models.glm_goldens import chatglm_6b, glm_130b, golden
from models.records import forget
from safetensors.torch import load_file, save_file

import qformats
from qformats.errors import CheckpointError, ConfigError, UnsupportedModelError
from qformats.runtime import PackedLayer
from qformats_glm.models.configuration import GLM130BConfig

CLOSE = 1e-4
"""See test_blank_filling.py."""
FILES = {"chatglm-6b": chatglm_6b, "glm-130b": glm_130b}
PROMPT = {"chatglm-6b": "prefill", "glm-130b": "gmask.prefill"}


def load(path, **options):
    return qformats.load_model(path, device="cpu", **options)


def packed(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedLayer)}


@torch.no_grad()
def check(model, name, bits, close=CLOSE):
    known, part = golden(name), PROMPT[name]
    expected = known[f"int{bits}.{part}.logits" if bits else f"{part}.logits"]
    assert (model(known[f"{part}.input_ids"]).logits - expected).abs().max() < close


@pytest.mark.parametrize("bits", [0, 8, 4])
@pytest.mark.parametrize("name", FILES)
def test_files_run_as_they_are(name, bits, tmp_path):
    model = load(FILES[name](tmp_path / "in", bits))
    check(model, name, bits)
    layers = packed(model)
    assert len(layers) == (12 if bits else 0)
    assert {layer.packed().format for layer in layers.values()} == ({f"glm:int{bits}"} if bits else set())
    assert {weight.format for weight in model.qformats_report.weights} == (
        {f"glm:int{bits}"} if bits else set()
    )


@pytest.mark.parametrize("name", FILES)
def test_generate_writes_what_upstream_writes(name, tmp_path):
    known, part = golden(name), PROMPT[name].removesuffix("prefill")
    model = load(FILES[name](tmp_path / "in"))
    ids = known[f"{part}prefill.input_ids"]
    found = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(found[:, ids.shape[1] :], known[f"{part}greedy.tokens"])


@pytest.mark.parametrize("ranks", [1, 4])
def test_any_number_of_ranks(ranks, tmp_path):
    check(load(glm_130b(tmp_path / "in", ranks=ranks)), "glm-130b", 0)


def test_ranks_with_scales_of_their_own_run(tmp_path):
    """Row-parallel weights that each rank has quantized by itself: several scales per row."""
    source = glm_130b(tmp_path / "in")
    for file in (source / "300").iterdir():
        content = torch.load(file, weights_only=True)
        for name in [n for n in content["module"] if n.endswith(".weight") and "dense" in n]:
            codes, scale = chatglm.quantize(content["module"][name], 8)
            content["module"] |= {name: codes, f"{name}_scale": scale}
        torch.save(content, file)
    model = load(source)
    assert {layer.packed().format for layer in packed(model).values()} == {"glm:int8", "glm:int8-tp2"}
    # Finer scales than upstream's, so that the numbers lie between those of int8 and of plain numbers.
    check(model, "glm-130b", 0, close=1.0)
    qformats.export(source, tmp_path / "dense", format="dense:f32")
    dense = load(tmp_path / "dense")
    ids = golden("glm-130b")["gmask.prefill.input_ids"]
    with torch.no_grad():
        assert (model(ids).logits - dense(ids).logits).abs().max() < CLOSE


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", FILES)
def test_exports_run_with_upstreams_numbers(name, bits, tmp_path):
    """Quantized here, decoded and run here: as upstream's own codes and scales in upstream's own code."""
    # Several ranks would quantize row-parallel weights each by itself, as upstream does, but not for these numbers.
    source = chatglm_6b(tmp_path / "in") if name == "chatglm-6b" else glm_130b(tmp_path / "in", ranks=1)
    qformats.export(source, tmp_path / "out", format=f"glm:int{bits}")
    assert qformats.open(tmp_path / "out").container == qformats.open(source).container
    check(load(tmp_path / "out"), name, bits)
    check(load(source, format=f"glm:int{bits}"), name, bits)
    # And back to plain numbers, which a folder of Transformers' kind holds.
    qformats.export(tmp_path / "out", tmp_path / "dense", format="dense:f32")
    check(load(tmp_path / "dense"), name, bits)


@pytest.mark.parametrize("format", ["bitsandbytes:nf4", "gptq:4bit-32g"])
@pytest.mark.parametrize("name", FILES)
def test_formats_of_other_families_run(name, format, tmp_path):
    source = FILES[name](tmp_path / "in")
    qformats.export(source, tmp_path / "out", format=format, quantizer="rtn")
    model = load(tmp_path / "out")
    assert len(packed(model)) == 12
    qformats.export(tmp_path / "out", tmp_path / "dense", format="dense:f32")
    ids = golden(name)[f"{PROMPT[name]}.input_ids"]
    with torch.no_grad():
        assert (model(ids).logits - load(tmp_path / "dense")(ids).logits).abs().max() < CLOSE


@pytest.mark.parametrize("container", ["bin", "safetensors"])
def test_a_quantized_embedding_is_the_output_layer_too(container, tmp_path):
    special = {"mask_token_id": 28, "gmask_token_id": 29}
    values = chatglm.save_6b(tmp_path / "in", bits=4, embeddings=True, container=container)
    told = json.loads((tmp_path / "in" / "config.json").read_text())
    (tmp_path / "in" / "config.json").write_text(json.dumps(told | special))
    model = load(tmp_path / "in")
    assert {"transformer.word_embeddings", "lm_head"} <= packed(model).keys()
    save = {name: value for name, value in values.items() if not name.startswith("lm_head")}
    (tmp_path / "dense").mkdir()
    save_file(save, tmp_path / "dense" / "model.safetensors")
    plain = {k: v for k, v in (told | special).items() if not k.startswith("quantization")}
    (tmp_path / "dense" / "config.json").write_text(json.dumps(plain))
    dense = load(tmp_path / "dense")
    # Without an output layer of its own the model has the embedding's.
    assert dense.lm_head.weight is dense.transformer.word_embeddings.weight
    ids = torch.tensor([[1, 2, 3, 29, 30]])
    with torch.no_grad():
        found, expected = model(ids).logits, dense(ids).logits
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_output_layer_stays_apart_from_the_embedding(tmp_path):
    """Old versions of Transformers tied them; these two differ."""
    with pytest.warns(UserWarning, match="they differ: both are kept"):
        model = load(chatglm_6b(tmp_path / "in", tie_word_embeddings=True))
    assert not torch.equal(model.lm_head.weight, model.transformer.word_embeddings.weight)
    check(model, "chatglm-6b", 0)


def test_an_output_layer_that_repeats_the_embedding_is_held_once(tmp_path):
    """As in the published files, which old versions of Transformers wrote from tied weights."""
    folder = chatglm_6b(tmp_path / "in", 4)
    content = load_file(folder / "model.safetensors")
    table = content["transformer.word_embeddings.weight"]
    save_file(content | {"lm_head.weight": table.clone()}, folder / "model.safetensors")
    model = load(folder)
    assert model.lm_head.weight is model.transformer.word_embeddings.weight
    apart = load(chatglm_6b(tmp_path / "apart", 4))
    assert apart.qformats_report.dense_nbytes - model.qformats_report.dense_nbytes == 4 * table.numel()
    apart.lm_head.weight.data.copy_(table)
    ids = golden("chatglm-6b")["prefill.input_ids"]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, apart(ids).logits)
    # An export holds both, as upstream's code expects.
    qformats.export(folder, tmp_path / "out", format="glm:int8")
    assert "lm_head.weight" in load_file(tmp_path / "out" / "model.safetensors")


def test_a_folder_of_transformers_kind_is_checked_against_the_class(tmp_path):
    qformats.export(glm_130b(tmp_path / "in"), tmp_path / "out", format="dense:f16")
    assert qformats.open(tmp_path / "out").container == "huggingface"
    content = load_file(tmp_path / "out" / "model.safetensors")
    lacking = "transformer.layers.1.mlp.dense_4h_to_h.bias"
    save_file({k: v for k, v in content.items() if k != lacking}, tmp_path / "out" / "model.safetensors")
    forget(tmp_path / "out")
    with pytest.raises(CheckpointError, match=f"that GLM130BForCausalLM needs: {lacking}"):
        qformats.export(tmp_path / "out", tmp_path / "again", format="dense:f32")
    with pytest.raises(CheckpointError, match=f"lacks {lacking}, which GLM130BForCausalLM needs"):
        load(tmp_path / "out")


@pytest.mark.parametrize("name", FILES)
def test_inspect_and_plan(name, tmp_path, capsys):
    source = FILES[name](tmp_path / "in", 4)
    facts = json.loads(call(capsys, "inspect", source, "--json").out)
    assert facts["architecture"] == name
    plan = json.loads(call(capsys, "inspect", "--plan", "glm:int4", source, "--json").out)
    layers, hidden, context = 3, 64, 128 if name == "chatglm-6b" else 2048
    # Of each device: the file of one rank is what one device holds.
    ranks = 1 if name == "chatglm-6b" else 2
    assert len(plan["ranks"]) == ranks
    assert (plan["context"], plan["cache"] * ranks) == (context, context * layers * hidden * 2 * 2)


def test_an_unknown_number_of_heads_is_said(tmp_path):
    """Nothing in these files tells it: no frequencies of a rotation, no model_config.json."""
    source = glm_130b(tmp_path / "in", 4)
    (source / "model_config.json").unlink()
    with pytest.raises(ConfigError, match=r"num_attention_heads.*-O heads=N"):
        load(source)
    with pytest.raises(ConfigError, match="num_attention_heads: found 96; expected a divisor"):
        GLM130BConfig(hidden_size=64, num_attention_heads=96)
    model = load(source, options={"heads": "4"})
    ids = golden("glm-130b")["gmask.prefill.input_ids"]
    assert model.config.num_attention_heads == 4
    # The ids are those of this test's vocabulary, not of the published one.
    for key, value in {"gmask_token_id": 701, "bos_token_id": 704}.items():
        setattr(model.config, key, value)
    with torch.no_grad():
        found = model(ids).logits
    assert (found - golden("glm-130b")["int4.gmask.prefill.logits"]).abs().max() < CLOSE


@pytest.mark.parametrize("arch", [None, "chatglm"])
@pytest.mark.parametrize("name", FILES)
def test_gguf_has_no_architecture_for_them(name, arch, tmp_path):
    """llama.cpp's architecture of that name is ChatGLM2's, which has the rotation and the mask of another model."""
    options = {} if arch is None else {"arch": arch}
    with pytest.raises(UnsupportedModelError) as caught:
        qformats.export(
            FILES[name](tmp_path / "in"), tmp_path / "out.gguf", format="gguf:q8_0", options=options
        )
    told = str(caught.value)
    assert "--arch" not in told
    if name == "chatglm-6b":
        assert "architecture chatglm is that of models of type glm, not of this one" in told
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_p_tuning_is_refused(tmp_path):
    for value in (128, 1):
        folder = chatglm_6b(tmp_path / str(value), 4, pre_seq_len=value, prefix_projection=False)
        with pytest.raises(UnsupportedModelError, match=rf"pre_seq_len: found {value}.*P-tuning"):
            qformats.open(folder)
    assert load(chatglm_6b(tmp_path / "none", 4, pre_seq_len=None)).config.pre_seq_len is None
