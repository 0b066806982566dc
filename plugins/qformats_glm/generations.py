"""Which tensors a GLM model stores, under which names and in which shapes: from its configuration alone.

Three generations share one number format and differ in everything else:

=============  ===========================  ====================================================
generation     recognised by                models
=============  ===========================  ====================================================
GLM-130B       ``model_type: glm-130b``     GLM-130B; its checkpoints have no config.json
ChatGLM-6B     ``inner_hidden_size``        ChatGLM-6B and its int4, int8 and int4-qe repositories
ChatGLM2       ``ffn_hidden_size``          ChatGLM2-6B, ChatGLM3-6B, GLM-4-9B with remote code
=============  ===========================  ====================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qformats.errors import CheckpointError, Described, UnsupportedModelError
from qformats.interfaces import Values

__all__ = ["TOKENS", "ChatGLM2Sizes", "Generation", "Weight", "chatglm2_sizes", "generation", "is_ours"]

TOKENS = 2048
"""Context of GLM-130B and ChatGLM-6B."""
_LARGEST = 1 << 31
_MOST_LAYERS = 4096
_FLAGS: dict[str, tuple[bool, str]] = {
    "rmsnorm": (True, "the native class has RMS norms"),
    "post_layer_norm": (True, "the native class has a norm after the last layer"),
    "original_rope": (True, "no other rotary embedding is known"),
    "add_bias_linear": (False, "the native class has biases only on queries, keys and values"),
    "apply_residual_connection_post_layernorm": (
        False,
        "the native class takes the residual before the norm",
    ),
}
"""Switches of ChatGLM2's code that every published model leaves at the value given here."""


@dataclass(frozen=True)
class Weight:
    """One tensor of a model.

    Attributes
    ----------
    name : str
        Name in the checkpoint.
    shape : tuple of int
        ``(N, K)``, or ``(N,)``.
    linear : bool
        Whether upstream's code quantizes it.
    dtype : str
        dtype in the published checkpoints; empty for that of the model.
    optional : bool
        Whether it may be missing.
    """

    name: str
    shape: tuple[int, ...]
    linear: bool = False
    dtype: str = ""
    optional: bool = False


@dataclass(frozen=True)
class Generation:
    """One model's tensors in its own names.

    Attributes
    ----------
    architecture : str
        ``"glm"`` if Transformers has a class for it, else ``"chatglm-6b"`` or ``"glm-130b"``.
    weights : tuple of Weight
        In file order.
    token_embedding, output : str
        Names of the two tensors that users address by role; `output` is empty where the embedding serves as it.
    ignored : frozenset of str
        Names that may be stored beside them and repeat one of them.
    """

    architecture: str
    weights: tuple[Weight, ...]
    token_embedding: str
    output: str
    ignored: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ChatGLM2Sizes:
    """Sizes of a model of the second generation, by Transformers' names."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    qkv_bias: bool
    interleaved: bool

    @property
    def qkv(self) -> tuple[int, int, int]:
        """Rows of queries, keys and values."""
        return self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim

    @property
    def frequencies(self) -> int:
        """Pairs of a head that are rotated: those of its first half."""
        return (self.head_dim // 2 + 1) // 2


def is_ours(config: Mapping[str, Any]) -> bool:
    """Whether this is the configuration of a GLM model outside Transformers."""
    return config.get("model_type") in ("chatglm", "glm-130b")


def generation(config: Mapping[str, Any], path: Path) -> Generation:
    """Tensors of the model that a configuration describes.

    Parameters
    ----------
    config : mapping
        config.json of a ChatGLM repository, or the sizes of a GLM-130B model with ``model_type: glm-130b``.
    path : Path
        Where it was found, for messages.

    Raises
    ------
    CheckpointError
        If a size is missing or impossible.
    UnsupportedModelError
        If the model is none of the three generations, or has parts that none of them has.
    """
    if "vision_config" in config:
        raise UnsupportedModelError(
            f"{path}: model", Described("a model with a vision part"), ["a language model"]
        )
    if config.get("pre_seq_len"):
        hint = "What P-tuning has learned is no part of the weights; load the base without it"
        raise UnsupportedModelError(
            f"{path}: pre_seq_len", config["pre_seq_len"], ["null: a model without P-tuning's prefix"], hint
        )
    if config.get("model_type") == "glm-130b":
        return _first(config, path, "glm-130b")
    if "ffn_hidden_size" in config:
        return _second(chatglm2_sizes(config, path))
    if "inner_hidden_size" in config:
        return _first(config, path, "chatglm-6b")
    found = "neither ffn_hidden_size (ChatGLM2, ChatGLM3, GLM-4) nor inner_hidden_size (ChatGLM-6B)"
    raise CheckpointError(path, found, "the configuration of a ChatGLM model")


def chatglm2_sizes(config: Mapping[str, Any], path: Path) -> ChatGLM2Sizes:
    """Sizes of a model of the second generation.

    Raises
    ------
    CheckpointError
        If a size is missing or impossible.
    UnsupportedModelError
        If a switch is set that no published model sets.
    """
    for name, (usual, why) in _FLAGS.items():
        found = config.get(name, usual)
        if found is not usual:
            hint = f"{why}, and no published ChatGLM model differs"
            raise UnsupportedModelError(f"{path}: {name}", found, [str(usual)], hint)
    hidden, heads = _size(config, "hidden_size", path), _size(config, "num_attention_heads", path)
    shared = config.get("multi_query_attention", False) is True
    groups = _size(config, "multi_query_group_num", path) if shared else heads
    if heads % groups:
        raise CheckpointError(path, f"multi_query_group_num {groups}", f"a divisor of the {heads} heads")
    if "kv_channels" in config:
        head_dim = _size(config, "kv_channels", path)
    else:
        head_dim = _per_head(hidden, heads, path)
    return ChatGLM2Sizes(
        layers=_size(config, "num_layers", path, _MOST_LAYERS),
        hidden=hidden,
        intermediate=_size(config, "ffn_hidden_size", path),
        heads=heads,
        kv_heads=groups,
        head_dim=head_dim,
        vocabulary=_size(config, "padded_vocab_size", path),
        qkv_bias=config.get("add_qkv_bias", False) is True,
        interleaved=not shared,
    )


def _second(sizes: ChatGLM2Sizes) -> Generation:
    hidden, rows = sizes.hidden, sum(sizes.qkv)
    embedding, output = "transformer.embedding.word_embeddings.weight", "transformer.output_layer.weight"

    def weights() -> Iterator[Weight]:
        yield Weight(embedding, (sizes.vocabulary, hidden))
        yield Weight("transformer.rotary_pos_emb.inv_freq", (sizes.frequencies,), optional=True)
        for number in range(sizes.layers):
            layer = f"transformer.encoder.layers.{number}"
            yield Weight(f"{layer}.input_layernorm.weight", (hidden,))
            yield Weight(f"{layer}.self_attention.query_key_value.weight", (rows, hidden), linear=True)
            if sizes.qkv_bias:
                yield Weight(f"{layer}.self_attention.query_key_value.bias", (rows,))
            yield Weight(f"{layer}.self_attention.dense.weight", (hidden, sizes.qkv[0]), linear=True)
            yield Weight(f"{layer}.post_attention_layernorm.weight", (hidden,))
            yield Weight(f"{layer}.mlp.dense_h_to_4h.weight", (2 * sizes.intermediate, hidden), linear=True)
            yield Weight(f"{layer}.mlp.dense_4h_to_h.weight", (hidden, sizes.intermediate), linear=True)
        yield Weight("transformer.encoder.final_layernorm.weight", (hidden,))
        yield Weight(output, (sizes.vocabulary, hidden))

    return Generation("glm", tuple(weights()), embedding, output)


def _first(config: Mapping[str, Any], path: Path, architecture: str) -> Generation:
    """GLM-130B and ChatGLM-6B: biases everywhere, layer norms, queries, keys and values of a head side by side."""
    large = architecture == "glm-130b"
    hidden, inner = _size(config, "hidden_size", path), _size(config, "inner_hidden_size", path)
    head_dim = _per_head(hidden, _size(config, "num_attention_heads", path), path)
    layers = _size(config, "num_layers", path, _MOST_LAYERS)
    vocabulary = _size(config, "vocab_size", path)
    # ChatGLM-6B rotates each half of a head by a position of its own.
    rotary = head_dim // (4 if config.get("position_encoding_2d", not large) is True else 2)
    # The norms of ChatGLM-6B were saved in float32, as the size of its files tells.
    norm = "" if large else "f32"
    quantized_embedding = config.get("quantization_embeddings") is True and not large
    embedding, output = "transformer.word_embeddings.weight", "" if large else "lm_head.weight"

    def layer_norm(name: str) -> Iterator[Weight]:
        yield Weight(f"{name}.weight", (hidden,), dtype=norm)
        yield Weight(f"{name}.bias", (hidden,), dtype=norm)

    def linear(name: str, rows: int, columns: int) -> Iterator[Weight]:
        yield Weight(f"{name}.weight", (rows, columns), linear=True)
        yield Weight(f"{name}.bias", (rows,))

    def weights() -> Iterator[Weight]:
        yield Weight(embedding, (vocabulary, hidden), linear=quantized_embedding)
        for number in range(layers):
            layer = f"transformer.layers.{number}"
            yield from layer_norm(f"{layer}.input_layernorm")
            yield Weight(f"{layer}.attention.rotary_emb.inv_freq", (rotary,), optional=True)
            yield from linear(f"{layer}.attention.query_key_value", 3 * hidden, hidden)
            yield from linear(f"{layer}.attention.dense", hidden, hidden)
            yield from layer_norm(f"{layer}.post_attention_layernorm")
            yield from linear(f"{layer}.mlp.dense_h_to_4h", inner * (2 if large else 1), hidden)
            yield from linear(f"{layer}.mlp.dense_4h_to_h", hidden, inner)
        yield from layer_norm("transformer.final_layernorm")
        if output and not quantized_embedding:
            yield Weight(output, (vocabulary, hidden), optional=True)

    if not quantized_embedding:
        return Generation(architecture, tuple(weights()), embedding, output)
    # The quantized output layer is the quantized embedding; a .bin file lists it twice and stores it once.
    return Generation(architecture, tuple(weights()), embedding, "", frozenset([output]))


def _size(config: Mapping[str, Any], name: str, path: Path, largest: int = _LARGEST) -> int:
    return Values(config, str(path)).integer(name, minimum=1, maximum=largest)


def _per_head(hidden: int, heads: int, path: Path) -> int:
    if hidden % heads:
        raise CheckpointError(path, f"hidden_size {hidden}", f"a multiple of the {heads} heads")
    return hidden // heads
