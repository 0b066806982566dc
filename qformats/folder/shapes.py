"""Names and shapes of the commonest decoders, from config.json alone.

Transformers' own class gives the same, but to import it takes 4 seconds of a processor (torch 2.13, Transformers 5.23),
and to build it 0.05. The table is compared with those classes in tests/folder/test_outline_shapes.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["known_shapes"]

_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    "num_key_value_heads",
)
_FAMILIES = {
    "llama": {"attention_bias", "mlp_bias"},
    "mistral": set[str](),
    "qwen2": set[str](),
    "qwen3": {"attention_bias", "head_dim"},
}
"""Model types, and which keys each of them heeds that others do not; `head_dim` has no default to be computed there."""


def known_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]] | None:
    """Shape of every tensor on disk, in the order of Transformers' class.

    Parameters
    ----------
    config : mapping
        ``config.json``.

    Returns
    -------
    dict of str to tuple of int, or None
        ``None`` if the type is none of these, or a key that matters is missing or unusual: then Transformers must tell.

    Examples
    --------
    >>> from qformats.folder.shapes import known_shapes
    >>> sizes = dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"), 1)
    >>> heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "tie_word_embeddings": True}
    >>> len(known_shapes({"model_type": "llama", **sizes, **heads}))
    11
    """
    heeded = _FAMILIES.get(str(config.get("model_type")))
    found = [config.get(key) for key in _SIZES]
    if heeded is None or not all(_positive(size) for size in found):
        return None
    vocabulary, hidden, inner, layers, heads, groups = (size for size in found if isinstance(size, int))
    width: Any = config.get("head_dim")
    if width is None and "head_dim" not in heeded:
        width = hidden // heads
    flags = {key: config.get(key, False) for key in ("attention_bias", "mlp_bias")}
    tied = config.get("tie_word_embeddings")
    usual = isinstance(tied, bool) and config.get("hidden_act", "silu") == "silu"
    if not usual or not _positive(width) or heads % groups or hidden % heads:
        return None
    if not all(isinstance(flag, bool) for flag in flags.values()):
        return None
    qkv = config["model_type"] == "qwen2" or ("attention_bias" in heeded and flags["attention_bias"])
    output = "attention_bias" in heeded and flags["attention_bias"]
    feed = "mlp_bias" in heeded and flags["mlp_bias"]
    matrices = (
        ("self_attn.q_proj", heads * width, hidden, qkv),
        ("self_attn.k_proj", groups * width, hidden, qkv),
        ("self_attn.v_proj", groups * width, hidden, qkv),
        ("self_attn.o_proj", hidden, heads * width, output),
    )
    vectors = {"self_attn.q_norm": width, "self_attn.k_norm": width} if "head_dim" in heeded else {}
    network = (
        ("mlp.gate_proj", inner, hidden, feed),
        ("mlp.up_proj", inner, hidden, feed),
        ("mlp.down_proj", hidden, inner, feed),
    )
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}

    def layer() -> Iterator[tuple[str, tuple[int, ...]]]:
        for part, lengths in ((matrices, vectors), (network, norms)):
            for name, rows, columns, bias in part:
                yield f"{name}.weight", (rows, columns)
                if bias:
                    yield f"{name}.bias", (rows,)
            yield from ((f"{name}.weight", (length,)) for name, length in lengths.items())

    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for number in range(layers):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer()}
    shapes["model.norm.weight"] = (hidden,)
    return shapes if tied else {**shapes, "lm_head.weight": (vocabulary, hidden)}


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
