"""Sizes of published models from their configurations alone, to the byte."""

from math import prod
from pathlib import Path

import pytest

from qformats.errors import CheckpointError, UnsupportedModelError
from qformats.registry import registry
from qformats_glm.generations import generation
from qformats_glm.packers import GLMPacker

CHATGLM2 = {
    "model_type": "chatglm",
    "num_layers": 28,
    "hidden_size": 4096,
    "ffn_hidden_size": 13696,
    "kv_channels": 128,
    "num_attention_heads": 32,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "padded_vocab_size": 65024,
    "add_qkv_bias": True,
    "torch_dtype": "float16",
}
CHATGLM_6B = {
    "model_type": "chatglm",
    "num_layers": 28,
    "hidden_size": 4096,
    "inner_hidden_size": 16384,
    "num_attention_heads": 32,
    "vocab_size": 150528,
    "position_encoding_2d": True,
}
GLM_130B = {
    "model_type": "glm-130b",
    "num_layers": 70,
    "hidden_size": 12288,
    "inner_hidden_size": 32768,
    "num_attention_heads": 96,
    "vocab_size": 150528,
}
PATH = Path("config.json")
NORMS_6B = 2 * 114 * 4096
"""What 114 vectors of layer norms take more in float32 than in float16."""


def _table(config, bits):
    """Bytes by the table of tensors and the packer's own sizes."""
    total = 0
    for weight in generation(config, PATH).weights:
        if weight.linear and bits:
            total += GLMPacker(bits).spec.nbytes(*weight.shape)
        else:
            total += prod(weight.shape) * (4 if weight.dtype == "f32" else 2)
    return total


@pytest.mark.parametrize(
    ("config", "bits", "expected"),
    [
        (CHATGLM2, 0, 12_487_168_064),
        (CHATGLM2, 8, 6_778_873_920),
        (CHATGLM2, 4, 3_923_601_472),
        (CHATGLM_6B, 0, 13_743_539_968 + NORMS_6B),
        (CHATGLM_6B | {"quantization_embeddings": True}, 4, 3_132_219_136 + NORMS_6B),
        (GLM_130B, 0, 257_395_598_080),
        (GLM_130B, 8, 130_577_621_760),
        (GLM_130B, 4, 67_159_745_280),
    ],
)
def test_published_sizes(config, bits, expected):
    assert _table(config, bits) == expected
    loader = registry().loader("chatglm")
    outline = loader.outline(config | ({"quantization_bit": bits} if bits else {}), PATH)
    assert sum(draft.source.nbytes for draft in loader.draft(outline, {})) == expected


def test_parameters():
    outline = registry().loader("chatglm").outline(CHATGLM2, PATH)
    assert outline.parameters == 6_243_584_000
    assert outline.config["model_type"] == "glm"
    assert outline.tensors["model.layers.27.self_attn.k_proj.weight"].shape == (256, 4096)
    assert outline.tensors["model.layers.0.mlp.gate_up_proj.weight"].shape == (27392, 4096)


def test_an_outline_has_no_weights():
    outline = registry().loader("chatglm").outline(CHATGLM2, PATH)
    with pytest.raises(CheckpointError, match="has no weights, only a configuration"):
        outline.read("model.norm.weight")
    assert outline.files == []
    assert outline.tokenizer_files() == {}


def test_other_configurations_are_not_ours():
    loader = registry().loader("chatglm")
    assert loader.outline({"model_type": "llama", "ffn_hidden_size": 4}, PATH) is None
    assert loader.outline({"model_type": "glm"}, PATH) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, "num_layers: found 0"),
        ({"num_layers": 10**9}, "up to 4096"),
        ({"num_layers": True}, "num_layers: found True"),
        ({"hidden_size": "4096"}, "hidden_size: found '4096'"),
        ({"padded_vocab_size": None}, "padded_vocab_size: found nothing"),
        ({"multi_query_group_num": 3}, "divisor of the 32 heads"),
        ({"quantization_bit": 3}, "one of 0, 4, 8"),
        ({"rope_ratio": -1}, "rope_ratio: found -1"),
        ({"layernorm_epsilon": "small"}, "layernorm_epsilon"),
        ({"ffn_hidden_size": 13697, "quantization_bit": 4}, "odd number"),
    ],
)
def test_impossible_sizes(changes, message):
    with pytest.raises(CheckpointError, match=message):
        registry().loader("chatglm").outline(CHATGLM2 | changes, PATH)


@pytest.mark.parametrize(
    "changes",
    [
        {"add_bias_linear": True},
        {"rmsnorm": False},
        {"post_layer_norm": False},
        {"original_rope": False},
        {"apply_residual_connection_post_layernorm": True},
        {"vision_config": {}},
    ],
)
def test_models_without_a_native_class(changes):
    with pytest.raises(UnsupportedModelError):
        registry().loader("chatglm").outline(CHATGLM2 | changes, PATH)
