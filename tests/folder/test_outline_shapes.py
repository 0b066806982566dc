"""Shapes from config.json alone beside those of Transformers' own classes."""

from pathlib import Path

import pytest

from qformats.errors import CheckpointError
from qformats.folder.outline import _built, outline
from qformats.folder.shapes import known_shapes

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
}
PATH = Path("config.json")
CHANGES = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "all heads": {"num_key_value_heads": 8},
    "one group": {"num_key_value_heads": 1},
    "attention biases": {"attention_bias": True},
    "network biases": {"mlp_bias": True},
    "wide heads": {"head_dim": 24},
    "quantized": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "layers": {"num_hidden_layers": 5},
}


GPT2 = {"vocab_size": 96, "n_positions": 48, "n_embd": 64, "n_layer": 2, "n_head": 4}
GPT2_CHANGES = {
    "plain": {},
    "untied": {"tie_word_embeddings": False},
    "network": {"n_inner": 40},
    "other names": {"hidden_size": 32, "num_hidden_layers": 3},
    "all defaults but one": dict.fromkeys(("vocab_size", "n_positions", "n_embd", "n_head")),
}


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "glm"])
@pytest.mark.parametrize("change", CHANGES)
def test_known_shapes_are_those_of_the_class(model_type, change):
    config = {"model_type": model_type, **SIZES, "head_dim": 16, **CHANGES[change]}
    found = known_shapes(config)
    assert list((found or {}).items()) == list(_built(config, PATH, model_type).items())


@pytest.mark.parametrize("change", GPT2_CHANGES)
def test_shapes_of_gpt2_are_those_of_the_class(change):
    """Canonical ones: its matrices lie transposed in files."""
    config = {"model_type": "gpt2", **GPT2, **GPT2_CHANGES[change]}
    config = {key: value for key, value in config.items() if value is not None}
    found = known_shapes(config)
    assert list((found or {}).items()) == list(_built(config, PATH, "gpt2").items())


def test_a_flag_that_adds_tensors_is_recorded():
    config = {"model_type": "gpt2", **GPT2, "add_cross_attention": True}
    assert known_shapes(config) == _built(config, PATH, "gpt2")


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2"])
def test_heads_share_the_width_where_nothing_else_is_said(model_type):
    config = {"model_type": model_type, **SIZES}
    assert known_shapes(config) == _built(config, PATH, model_type)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "glm"])
@pytest.mark.parametrize("missing", [key for key in SIZES if key != "pad_token_id"])
def test_what_a_configuration_leaves_out_is_what_its_class_says(model_type, missing):
    sizes = {key: value for key, value in SIZES.items() if key != missing}
    config = {"model_type": model_type, **sizes, "head_dim": 16}
    if missing == "num_key_value_heads":
        config["num_attention_heads"] = 32
    assert known_shapes(config) == _built(config, PATH, model_type)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_heads_without_groups(model_type):
    config = {"model_type": model_type, **SIZES, "head_dim": 16, "num_key_value_heads": None}
    assert known_shapes(config) == _built(config, PATH, model_type)


@pytest.mark.parametrize(
    "config",
    [
        {**SIZES, "hidden_act": "gelu"},
        {**SIZES, "num_attention_heads": 7},
        {**SIZES, "num_key_value_heads": 3},
        {**SIZES, "hidden_size": True},
        {**SIZES, "vocab_size": "96"},
        {**SIZES, "attention_bias": None},
        {**SIZES, "tie_word_embeddings": None},
        {**SIZES, "hidden_size": None},
        {**SIZES, "model_type": "gpt2", "activation_function": "silu"},
        {**SIZES, "model_type": "gpt2", "num_attention_heads": 5},
        {**SIZES, "model_type": "opt"},
        {**SIZES, "model_type": "qwen3", "head_dim": None},
        {**SIZES, "model_type": "mistral", "num_key_value_heads": None},
        {**SIZES, "model_type": ["llama"]},
    ],
)
def test_what_is_unusual_is_left_to_transformers(config):
    assert known_shapes({"model_type": "llama", **config}) is None


@pytest.mark.parametrize("key", ["num_local_experts", "num_hidden_layers"])
def test_absurd_numbers_take_no_time(key):
    config = {"model_type": "mixtral", **SIZES, key: 10**9}
    assert known_shapes(config) is None
    with pytest.raises(CheckpointError, match=f"{10**9}|{2 * 2 * 10**9} experts"):
        outline(config, PATH)


def test_without_a_record_a_missing_key_is_left_to_transformers(monkeypatch):
    """As with another version of Transformers than the recorded one."""
    monkeypatch.setattr("qformats.folder.shapes.recorded", lambda model_type: None)
    told = {**SIZES, "attention_bias": False, "mlp_bias": False}
    assert known_shapes({"model_type": "llama", **told}) is not None
    for missing in told.keys() - {"pad_token_id"}:
        sizes = {key: value for key, value in told.items() if key != missing}
        assert known_shapes({"model_type": "llama", **sizes}) is None
    assert known_shapes({"model_type": "gpt2", **GPT2}) is None


def test_defaults_are_those_of_transformers():
    config = {"model_type": "mistral", **SIZES, "num_attention_heads": 16}
    del config["num_key_value_heads"]
    assert outline(config, PATH).tensors["model.layers.0.self_attn.k_proj.weight"].shape == (8 * 4, 64)
