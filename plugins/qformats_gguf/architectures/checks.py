"""Limits that take more than one key of a configuration, by the names that files of the table use."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qformats.interfaces import Values
from qformats_gguf.architectures.limits import Config, Problem

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
    """Attention that Transformers limits to a window and llama.cpp does not, where it is switched on."""
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


def _dense_then_sparse(config: Config) -> Problem | None:
    """Name layers without experts after one that has them."""
    dense, layers, kinds = (
        config["first_k_dense_replace"],
        config["num_hidden_layers"],
        config["mlp_layer_types"],
    )
    if kinds == ["dense"] * dense + ["sparse"] * (layers - dense):
        return None
    reason = "llama.cpp has experts in every layer after the first ones"
    return Problem("mlp_layer_types", kinds, (f"dense layers, then sparse ones, {layers} in all",), reason)


def _window_with_64_layers(config: Config) -> Problem | None:
    """Name a window in a model other than the one that llama.cpp has it for, or the lack of it there."""
    kinds = config["layer_types"]
    released = len(kinds) == 64
    expected = [
        ("full_attention", "sliding_attention")[released and (i + 1) % 4 != 0] for i in range(len(kinds))
    ]
    if kinds == expected and released == (config.get("sliding_window") is not None):
        return None
    if released and kinds != expected:
        return Problem(
            "layer_types", kinds, ("three sliding layers, then a full one",), "llama.cpp assumes them"
        )
    # Transformers rotates in full layers only if there is no window.
    reason = "llama.cpp has a window, and layers without rotation, in a model of 64 layers and in no other"
    return Problem(
        "sliding_window", config.get("sliding_window"), ("a number" if released else "null",), reason
    )


def _always_a_window(config: Config) -> Problem | None:
    """Name the lack of sliding layers where llama.cpp always has some."""
    if "sliding_attention" in config["layer_types"]:
        return None
    return Problem(
        "layer_types",
        "full_attention",
        ("sliding_attention",),
        "llama.cpp runs no such model without a window",
    )


def _head_norms_from_64_layers(config: Config) -> Problem | None:
    """Name norms of q and k in a model that is too small for llama.cpp to load them, or the lack of them."""
    there, loaded = bool(config.get("use_qk_norm")), config["num_hidden_layers"] >= 64
    if there == loaded:
        return None
    reason = "llama.cpp loads norms of q and k in models of 64 layers and more, and in no others"
    return Problem("use_qk_norm", there, (str(loaded).lower(),), reason)


def _rotation_but_every_fourth(config: Config) -> Problem | None:
    """Name layers that rotate, or do not, unlike llama.cpp's."""
    layers = config["num_hidden_layers"]
    given, every = config.get("no_rope_layers"), config.get("no_rope_layer_interval")
    expected = [int((i + 1) % 4 != 0) for i in range(layers)]
    if (given is None and every == 4) or given == expected:
        return None
    key, found, allowed = ("no_rope_layers", given, str(expected))
    if given is None:
        key, found, allowed = ("no_rope_layer_interval", every, "4")
    return Problem(key, found, (allowed,), "llama.cpp leaves every fourth layer without a rotary embedding")


def _latent_heads(config: Config) -> Problem | None:
    """Name heads that share keys, which latent attention computes for each."""
    heads, found = config["num_attention_heads"], config.get("num_key_value_heads")
    if found in (None, heads):
        return None
    reason = "llama.cpp computes keys and values of every head in this architecture"
    return Problem("num_key_value_heads", found, (str(heads),), reason)


def _lite_depth(config: Config) -> Problem | None:
    """Name numbers of layers by which llama.cpp takes a model for one with other queries."""
    layers, rank = config["num_hidden_layers"], config.get("q_lora_rank")
    lite = layers in (26, 27) or (layers == 48 and config["vocab_size"] == 128256)
    if bool(rank) is not lite:
        return None
    if lite:
        reason = "llama.cpp takes a model of so many layers for one without q_lora_rank"
        return Problem("q_lora_rank", rank, ("null",), reason)
    reason = "llama.cpp loads a model without it with 26 or 27 layers only"
    return Problem("q_lora_rank", rank, ("a number",), reason)


def _no_groups(config: Config) -> Problem | None:
    """Name groups of experts that are chosen by their best one."""
    method, groups = config.get("topk_method"), config.get("n_group")
    if method == "greedy" or (method == "group_limited_greedy" and groups in (None, 1)):
        return None
    reason = "llama.cpp chooses groups of experts by the sum of their two best"
    return Problem("topk_method", method, ("greedy", "n_group 1"), reason)


def _chunks_where_rotated(config: Config) -> Problem | None:
    """Name layers that attend to chunks, or do not, unlike llama.cpp's."""
    kinds, layers = config.get("layer_types"), config["num_hidden_layers"]
    expected = [("full_attention", "chunked_attention")[(i + 1) % 4 != 0] for i in range(layers)]
    if kinds is None or kinds == expected:
        return None
    return Problem(
        "layer_types", kinds, (str(expected),), "llama.cpp attends to chunks in all layers but every fourth"
    )


def _experts_by_step(config: Config) -> Problem | None:
    """Name layers with experts other than every so many."""
    found, step, layers = (
        config.get("moe_layers"),
        config["interleave_moe_layer_step"],
        config["num_hidden_layers"],
    )
    expected = list(range(step - 1, layers, step))
    if found is None or found == expected:
        return None
    return Problem(
        "moe_layers", found, (str(expected),), "llama.cpp derives them from interleave_moe_layer_step"
    )


def _norms_of_heads(config: Config) -> Problem | None:
    """Name normalized queries and keys where llama.cpp has none, and the other way round."""
    found, expected = config["use_qk_norm"], config["num_local_experts"] != 128
    if found is expected:
        return None
    reason = "llama.cpp normalizes queries and keys unless there are 128 experts"
    return Problem("use_qk_norm", found, (str(expected),), reason)


def _twice_as_wide(config: Config) -> Problem | None:
    """Name an inner size other than the one that the architecture's loader derives."""
    found, derived = config["intermediate_size"], 2 * int(config["hidden_size"])
    if found == derived:
        return None
    reason = "llama.cpp loads no other size in this architecture"
    return Problem("intermediate_size", found, (f"2 * hidden_size ({derived})",), reason)


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
    "dense_then_sparse": _dense_then_sparse,
    "window_with_64_layers": _window_with_64_layers,
    "always_a_window": _always_a_window,
    "head_norms_from_64_layers": _head_norms_from_64_layers,
    "twice_as_wide": _twice_as_wide,
    "rotation_but_every_fourth": _rotation_but_every_fourth,
    "latent_heads": _latent_heads,
    "lite_depth": _lite_depth,
    "no_groups": _no_groups,
    "chunks_where_rotated": _chunks_where_rotated,
    "experts_by_step": _experts_by_step,
    "norms_of_heads": _norms_of_heads,
}
"""Each returns a `Problem` or None for a normalized configuration."""
