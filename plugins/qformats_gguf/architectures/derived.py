"""What model code makes of several keys of a configuration, by the names that files of the table use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qformats.interfaces import Values

__all__ = ["COMPLETE", "RESTORE"]


def _falcon(config: dict[str, Any]) -> None:
    """Heads of keys and values, norms, and the size of the network."""
    heads, new = config["num_attention_heads"], bool(config["new_decoder_architecture"])
    if not new:
        # Configurations that Transformers has saved say num_kv_heads = num_attention_heads here.
        config["num_kv_heads"] = 1 if config["multi_query"] else heads
    elif config.get("num_kv_heads") is None:
        config["num_kv_heads"] = heads
    if config.get("num_ln_in_parallel_attn") is None:
        config["num_ln_in_parallel_attn"] = 2 if new else 1
    if config.get("ffn_hidden_size") is None:
        config["ffn_hidden_size"] = 4 * config["hidden_size"]


def _falcon_back(config: dict[str, Any]) -> None:
    kv, norms = config["num_kv_heads"], config["num_ln_in_parallel_attn"]
    config["new_decoder_architecture"] = norms == 2 or kv not in (1, config["num_attention_heads"])
    config["multi_query"] = kv == 1


def _bloom(config: dict[str, Any]) -> None:
    """Context: there is no limit, and the converter takes this one."""
    if config.get("seq_length") is None:
        config["seq_length"] = config["hidden_size"]


def _minicpm(config: dict[str, Any]) -> None:
    """Its factors as Granite has them."""
    given = Values(config, "config.json")
    config["residual_multiplier"] = (
        given.number("scale_depth", above=0.0) / config["num_hidden_layers"] ** 0.5
    )
    config["logits_scaling"] = config["hidden_size"] / given.number("dim_model_base", above=0.0)


def _minicpm_back(config: dict[str, Any]) -> None:
    """What llama.cpp assumes where older files lack a factor; and what it scales attention by."""
    assumed = {
        "embedding_multiplier": 12.0,
        "residual_multiplier": 1.4 / config["num_hidden_layers"] ** 0.5,
        "logits_scaling": 256 / config["hidden_size"],
    }
    config |= {key: value for key, value in assumed.items() if config.get(key) is None}
    config["attention_multiplier"] = config["head_dim"] ** -0.5


def _lfm2(config: dict[str, Any]) -> None:
    """Size of the network, as its model class adjusts it."""
    if not config["block_auto_adjust_ff_dim"]:
        return
    given = Values(config, "config.json")
    size, multiple = int(2 * config["intermediate_size"] / 3), given.integer("block_multiple_of", minimum=1)
    if config["block_ffn_dim_multiplier"] is not None:
        size = int(given.number("block_ffn_dim_multiplier", above=0.0) * size)
        size = -(-size // multiple) * multiple
    config["intermediate_size"], config["block_auto_adjust_ff_dim"] = size, False


def _mamba(config: dict[str, Any]) -> None:
    """Sizes that its configuration class computes where they are not given."""
    if config.get("intermediate_size") is None:
        expand = Values(config, "config.json").number("expand", above=0.0)
        config["intermediate_size"] = int(expand * config["hidden_size"])
    if config["time_step_rank"] == "auto":
        config["time_step_rank"] = -(-config["hidden_size"] // 16)


def _glm4_moe_lite(config: dict[str, Any]) -> None:
    """How many layers without experts come first."""
    kinds = config.get("mlp_layer_types")
    if not isinstance(kinds, list):
        # Its class reads nothing else.
        kinds = ["dense", *["sparse"] * (config["num_hidden_layers"] - 1)]
    config["mlp_layer_types"] = kinds
    config["first_k_dense_replace"] = kinds.index("sparse") if "sparse" in kinds else len(kinds)


COMPLETE: Mapping[str, Callable[[dict[str, Any]], None]] = {
    "glm4_moe_lite": _glm4_moe_lite,
    "lfm2": _lfm2,
    "mamba": _mamba,
    "falcon": _falcon,
    "bloom": _bloom,
    "minicpm": _minicpm,
}
"""Each adds to a configuration in which the defaults are filled in."""

RESTORE: Mapping[str, Callable[[dict[str, Any]], None]] = {
    "falcon": _falcon_back,
    "minicpm": _minicpm_back,
}
"""Each adds to a configuration that was made from metadata and names of tensors."""
