"""Shapes from config.json alone beside those of Transformers' own classes."""

from pathlib import Path

import pytest

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


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("change", CHANGES)
def test_known_shapes_are_those_of_the_class(model_type, change):
    config = {"model_type": model_type, **SIZES, "head_dim": 16, **CHANGES[change]}
    found = known_shapes(config)
    assert list((found or {}).items()) == list(_built(config, PATH, model_type).items())


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2"])
def test_heads_share_the_width_where_nothing_else_is_said(model_type):
    config = {"model_type": model_type, **SIZES}
    assert known_shapes(config) == _built(config, PATH, model_type)


@pytest.mark.parametrize(
    "config",
    [
        *({key: value for key, value in SIZES.items() if key != missing} for missing in SIZES),
        {**SIZES, "hidden_act": "gelu"},
        {**SIZES, "num_attention_heads": 7},
        {**SIZES, "num_key_value_heads": 3},
        {**SIZES, "hidden_size": True},
        {**SIZES, "vocab_size": "96"},
        {**SIZES, "attention_bias": None},
        {**SIZES, "model_type": "gpt2"},
        {**SIZES, "model_type": "qwen3"},
        {**SIZES, "model_type": ["llama"]},
    ],
)
def test_what_is_missing_or_unusual_is_left_to_transformers(config):
    assert known_shapes({"model_type": "llama", **config}) is None


def test_defaults_are_those_of_transformers():
    config = {"model_type": "mistral", **SIZES, "num_attention_heads": 16}
    del config["num_key_value_heads"]
    assert outline(config, PATH).tensors["model.layers.0.self_attn.k_proj.weight"].shape == (8 * 4, 64)
