"""Limits that take more than one key of a configuration, by the names that files of the table use."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qformats.interfaces import Values
from qformats_gguf.architectures.schema import Config, Problem

__all__ = ["CHECKS", "whole_heads"]


def _window(config: Config) -> Problem | None:
    """Attention that Transformers limits to a window and llama.cpp does not."""
    window = Values(config, "config.json").integer("sliding_window", None)
    positions = config["max_position_embeddings"]
    if window is None or window >= positions:
        return None
    return Problem(
        "sliding_window",
        window,
        ("null", f"at least max_position_embeddings ({positions})"),
        f"llama.cpp has no sliding window in this architecture, so texts longer than {window} tokens differ",
    )


def _optional_window(config: Config) -> Problem | None:
    """As `_window`, where `use_sliding_window` and the layer types switch it on."""
    if not config.get("use_sliding_window"):
        return None
    kinds = config.get("layer_types")
    first = Values(config, "config.json").integer("max_window_layers", 0)
    used = "sliding_attention" in kinds if isinstance(kinds, list) else first < config["num_hidden_layers"]
    return _window(config) if used else None


def _layer_types(config: Config) -> Problem | None:
    """Name layers of other kinds than these types' model code has."""
    kinds = config.get("layer_types")
    known = ("full_attention", "sliding_attention")
    if kinds is None or (isinstance(kinds, list) and all(kind in known for kind in kinds)):
        return None
    return Problem("layer_types", kinds, known, "llama.cpp computes full attention in every layer")


def _every_layer_sparse(config: Config) -> Problem | None:
    """Name layers without experts among layers that have them."""
    step, plain = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers")
    if step == 1 and not plain:
        return None
    key = "mlp_only_layers" if plain else "decoder_sparse_step"
    expected = "[]" if plain else "1"
    return Problem(
        key, config[key], (expected,), "llama.cpp loads experts in every layer of this architecture"
    )


def whole_heads(config: Config) -> Problem | None:
    """Name a head size other than the one that the architecture's loader derives."""
    derived = int(config["hidden_size"]) // int(config["num_attention_heads"])
    if config["head_dim"] == derived:
        return None
    return Problem(
        "head_dim",
        config["head_dim"],
        (f"hidden_size / num_attention_heads ({derived})",),
        "llama.cpp loads no other head size in this architecture",
    )


CHECKS: Mapping[str, Callable[[Config], Problem | None]] = {
    "window": _window,
    "optional_window": _optional_window,
    "layer_types": _layer_types,
    "every_layer_sparse": _every_layer_sparse,
}
"""Each returns a `Problem` or None for a normalized configuration."""
