"""ChatGLM2, ChatGLM3 and GLM-4 as Transformers' class ``GlmForCausalLM``, and back.

The mathematics is the same, names and two groupings differ: ChatGLM keeps queries, keys and values in one matrix,
and its rotation acts on neighbouring pairs of the first half of each head, as that of ``glm`` does. So rows move
and nothing is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qformats import PackedTensor, StoredTensor
from qformats.errors import CheckpointError, UnsupportedModelError
from qformats.interfaces import Values, concat_rows, dense
from qformats_glm.generations import ChatGLM2Sizes, chatglm2_sizes

__all__ = ["INV_FREQ", "from_native", "native_config", "stored_config", "to_native"]

INV_FREQ = "transformer.rotary_pos_emb.inv_freq"
_BASE = 10000
"""Base of the rotation in ChatGLM's code, which the configuration multiplies by rope_ratio."""
_STEEPEST = 1e34
"""Largest base of a rotation that float32 can compute with."""
_ENDS = {
    "transformer.embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "transformer.encoder.final_layernorm.weight": "model.norm.weight",
    "transformer.output_layer.weight": "lm_head.weight",
}
_LAYER = {
    "input_layernorm.weight": "input_layernorm.weight",
    "self_attention.dense.weight": "self_attn.o_proj.weight",
    "post_attention_layernorm.weight": "post_attention_layernorm.weight",
    "mlp.dense_h_to_4h.weight": "mlp.gate_up_proj.weight",
    "mlp.dense_4h_to_h.weight": "mlp.down_proj.weight",
}
_FUSED = "self_attention.query_key_value"
_PARTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def to_native(own: Mapping[str, StoredTensor], sizes: ChatGLM2Sizes) -> dict[str, StoredTensor]:
    """Tensors of a ChatGLM2-like checkpoint under the names of ``GlmForCausalLM``."""
    found: dict[str, StoredTensor] = {}
    for name, tensor in own.items():
        if name == INV_FREQ:
            # The native class computes it.
            continue
        if name in _ENDS:
            found[_ENDS[name]] = tensor.renamed(_ENDS[name])
            continue
        number, _, rest = name.removeprefix("transformer.encoder.layers.").partition(".")
        layer = f"model.layers.{number}"
        if rest in _LAYER:
            found[f"{layer}.{_LAYER[rest]}"] = tensor.renamed(f"{layer}.{_LAYER[rest]}")
        else:
            kind = rest.removeprefix(f"{_FUSED}.")
            for part, rows in zip(_PARTS, _split(tensor, sizes), strict=True):
                found[f"{layer}.{part}.{kind}"] = rows.renamed(f"{layer}.{part}.{kind}")
    return found


def _split(tensor: StoredTensor, sizes: ChatGLM2Sizes) -> Iterator[StoredTensor]:
    """Queries, keys and values of a fused weight or bias, packed or not."""
    import numpy as np

    start = 0
    for number, count in enumerate(sizes.qkv):
        if sizes.interleaved:
            # Every head has its own queries, keys and values next to each other.
            first = np.arange(sizes.heads)[:, None] * 3 + number
            rows = first * sizes.head_dim + np.arange(sizes.head_dim)
            yield tensor.take_rows(rows.reshape(-1))
        else:
            yield tensor.slice_rows(start, start + count)
        start += count


def from_native(
    source: Mapping[str, StoredTensor], sizes: ChatGLM2Sizes, path: Path
) -> dict[str, StoredTensor]:
    """Tensors of a ``GlmForCausalLM`` checkpoint under ChatGLM2's names, in its order.

    Raises
    ------
    CheckpointError
        If a tensor is missing.
    UnsupportedModelError
        If there is one that ChatGLM2 has no name for.
    """
    left = dict(source)

    def take(name: str) -> StoredTensor:
        try:
            return left.pop(name)
        except KeyError:
            raise CheckpointError(path, "is missing", "a complete model", tensor=name) from None

    embedding, norm, output = _ENDS
    if _ENDS[output] not in left and _ENDS[embedding] in left:
        # ChatGLM's code never shares the two.
        left[_ENDS[output]] = left[_ENDS[embedding]]
    found = {embedding: take(_ENDS[embedding]), INV_FREQ: _inverse_frequencies(sizes, path)}
    for number in range(sizes.layers):
        old, new = f"model.layers.{number}", f"transformer.encoder.layers.{number}"
        for kind in ("weight", "bias") if sizes.qkv_bias else ("weight",):
            name = f"{new}.{_FUSED}.{kind}"
            found[name] = concat_rows(name, [take(f"{old}.{part}.{kind}") for part in _PARTS])
        for stored, native in _LAYER.items():
            found[f"{new}.{stored}"] = take(f"{old}.{native}")
    found |= {norm: take(_ENDS[norm]), output: take(_ENDS[output])}
    if left:
        name = next(iter(left))
        raise UnsupportedModelError(f"{path}: tensor", name, ["the tensors of GlmForCausalLM"])
    return {name: tensor.renamed(name) for name, tensor in found.items()}


def _inverse_frequencies(sizes: ChatGLM2Sizes, path: Path) -> StoredTensor:
    """Frequencies of the rotation, which ChatGLM's checkpoints store; its code computes them anew."""
    count = sizes.frequencies

    def load(start: int, stop: int) -> PackedTensor:
        import torch

        steps = torch.arange(0, 2 * count, 2, dtype=torch.float32) / (sizes.head_dim // 2)
        values = (1.0 / _BASE**steps).to(torch.float16)[start:stop]
        return PackedTensor(dense("f16"), tuple(values.shape), {"weight": values})

    return StoredTensor(INV_FREQ, (count,), dense("f16"), 2 * count, path, load)


def native_config(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """``GlmConfig`` of a ChatGLM2-like configuration, as config.json has it."""
    sizes = chatglm2_sizes(config, path)
    values = Values(config, str(path))
    ratio = values.number("rope_ratio", 1, above=0, maximum=_STEEPEST / _BASE)
    epsilon = values.number("layernorm_epsilon", 1e-5, minimum=0, maximum=1)
    theta = _BASE * float(ratio)
    native: dict[str, Any] = {
        "architectures": ["GlmForCausalLM"],
        "model_type": "glm",
        "attention_bias": sizes.qkv_bias,
        "attention_dropout": config.get("attention_dropout", 0.0),
        "head_dim": sizes.head_dim,
        "hidden_act": "silu",
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "max_position_embeddings": config.get("seq_length", 2048),
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.kv_heads,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": epsilon,
        "rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": theta, "rope_type": "default"},
        "tie_word_embeddings": False,
        "vocab_size": sizes.vocabulary,
        # The defaults of GlmConfig lie outside ChatGLM2's vocabulary.
        "pad_token_id": config.get("pad_token_id", 0),
        "eos_token_id": config.get("eos_token_id", 2),
        "bos_token_id": config.get("bos_token_id"),
        "use_cache": config.get("use_cache", True),
    }
    if "_name_or_path" in config:
        # The tokenizers of ChatGLM2 and ChatGLM3 have the same files; the name tells them apart.
        native["_name_or_path"] = config["_name_or_path"]
    dtype = config.get("torch_dtype", config.get("dtype"))
    return native | ({"dtype": dtype} if dtype is not None else {})


def stored_config(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Configuration of ChatGLM3's code for a ``GlmConfig``.

    Raises
    ------
    UnsupportedModelError
        If ChatGLM's code cannot compute this model.
    """
    values = Values(config, str(path))
    rope, scaling = values.section("rope_parameters"), values.section("rope_scaling")
    theta = rope.number("rope_theta", values.number("rope_theta", _BASE), above=0, maximum=_STEEPEST)
    factor = rope.number("partial_rotary_factor", values.number("partial_rotary_factor", 0.5))
    kind = rope.text("rope_type", scaling.text("rope_type", scaling.text("type", "default")))
    for name, found, usual in (
        ("rope_type", kind, "default"),
        ("partial_rotary_factor", factor, 0.5),
        ("hidden_act", config.get("hidden_act", "silu"), "silu"),
    ):
        if found != usual:
            raise UnsupportedModelError(
                f"{path}: {name}", found, [str(usual)], "ChatGLM's code supports no other value"
            )
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    head_dim = config.get("head_dim")
    if head_dim is None and isinstance(heads, int) and isinstance(hidden, int) and heads:
        head_dim = hidden // heads
    ratio = theta / _BASE
    stored = {
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        "add_bias_linear": False,
        "add_qkv_bias": bool(config.get("attention_bias", False)),
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "attention_dropout": config.get("attention_dropout", 0.0),
        "attention_softmax_in_fp32": True,
        "bias_dropout_fusion": True,
        "ffn_hidden_size": config.get("intermediate_size"),
        "fp32_residual_connection": False,
        "hidden_dropout": 0.0,
        "hidden_size": hidden,
        "kv_channels": head_dim,
        "layernorm_epsilon": config.get("rms_norm_eps", 1.5625e-07),
        "multi_query_attention": True,
        "multi_query_group_num": config.get("num_key_value_heads", heads),
        "num_attention_heads": heads,
        "num_layers": config.get("num_hidden_layers"),
        "original_rope": True,
        "padded_vocab_size": config.get("vocab_size"),
        "post_layer_norm": True,
        "rmsnorm": True,
        "rope_ratio": int(ratio) if ratio == int(ratio) else ratio,
        "seq_length": config.get("max_position_embeddings", 2048),
        "tie_word_embeddings": False,
        "use_cache": True,
    }
    return stored | {
        name: config[name]
        for name in ("bos_token_id", "eos_token_id", "pad_token_id")
        if config.get(name) is not None
    }
