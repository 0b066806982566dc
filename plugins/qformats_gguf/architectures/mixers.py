"""Layers of two kinds: with attention, and with a convolution or linear attention in its place.

Transformers says which is which in ``layer_types``. GGUF has no key-value heads in the layers without attention, or an
array of flags.

Source: ggml-org/llama.cpp:src/models/{lfm2,qwen3next}.cpp, conversion/{lfm2,qwen}.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qformats.errors import CheckpointError, UnsupportedModelError
from qformats_gguf.architectures.numbers import config_number, metadata_number
from qformats_gguf.architectures.schema import Mixers
from qformats_gguf.metadata import Keys, Metadata, ValueType, array, u32

__all__ = ["MIXER_KEYS", "complete", "from_metadata", "to_metadata"]

MIXER_KEYS = {"layer_types", "full_attn_idxs", "full_attention_interval"}
"""Keys of a configuration that are about the kinds of its layers."""

_ATTENTION = "full_attention"
_HEADS, _FLAGS, _EVERY = "attention.head_count_kv", "attention.recurrent_layers", "full_attention_interval"


def complete(config: dict[str, Any], mixers: Mixers, source: str) -> None:
    """Give a configuration the kind of each layer, in place.

    Raises
    ------
    UnsupportedModelError
        If there are other kinds of layers, or not as many as layers.
    """
    layers, kinds = config["num_hidden_layers"], config.get("layer_types")
    if kinds is None:
        kinds = _usual(config, mixers, source)
    known = (_ATTENTION, mixers.other)
    if not isinstance(kinds, list) or len(kinds) != layers or not set(map(str, kinds)) <= set(known):
        hint = f"each of the {layers} layers must be one of these"
        raise UnsupportedModelError(f"{source}: layer_types", kinds, known, hint)
    config["layer_types"] = kinds


def _usual(config: Mapping[str, Any], mixers: Mixers, source: str) -> list[str]:
    """What Transformers' class assumes."""
    layers = config["num_hidden_layers"]
    if mixers.every:
        every = config.get(_EVERY) or mixers.every
        config_number(every, _EVERY, source, whole=True)
        return _in_turn(layers, every, mixers)
    chosen = config.get("full_attn_idxs")
    if chosen is not None and not isinstance(chosen, list):
        raise CheckpointError(source, f"full_attn_idxs {chosen!r}", "a list of layers")
    return [_ATTENTION if chosen is None or layer in chosen else mixers.other for layer in range(layers)]


def _in_turn(layers: int, every: int, mixers: Mixers) -> list[str]:
    return [mixers.other if (layer + 1) % every else _ATTENTION for layer in range(layers)]


def to_metadata(prefix: str, config: Mapping[str, Any], mixers: Mixers, more: int = 0) -> Metadata:
    """The array that says which layers have attention; so have `more` layers that predict further tokens."""
    attends = [kind == _ATTENTION for kind in config["layer_types"]]
    if mixers.every:
        flags = [not each for each in attends] + [False] * more
        found: Metadata = {prefix + _FLAGS: array(ValueType.BOOL, flags)}
        every = config.get(_EVERY) or mixers.every
        if config["layer_types"] == _in_turn(len(attends), every, mixers):
            # What older versions of llama.cpp read.
            found[prefix + _EVERY] = u32(every)
        return found
    heads = config["num_key_value_heads"]
    counts = [heads if each else 0 for each in attends] + [heads] * more
    return {prefix + _HEADS: array(ValueType.I32, counts)}


def from_metadata(
    prefix: str, metadata: Metadata, layers: int, mixers: Mixers, source: str, more: int = 0
) -> tuple[dict[str, Any], set[str]]:
    """Keys of the configuration, and of the metadata that were understood; `more` layers predict further tokens."""
    keys = Keys(metadata, source)
    if mixers.every:
        every = metadata_number(metadata, prefix + _EVERY, source, whole=True) or mixers.every
        kinds, found = _in_turn(layers, every, mixers), keys.get(prefix + _FLAGS)
        if found is not None:
            kinds = [
                mixers.other if each else _ATTENTION for each in _each(found, layers, _FLAGS, source, more)
            ]
        return {"layer_types": kinds}, {prefix + _FLAGS, prefix + _EVERY}
    found = keys.get(prefix + _HEADS)
    heads = _each(
        found if isinstance(found, list) else [found] * (layers + more), layers, _HEADS, source, more
    )
    different = set(heads) - {0}
    if len(different) != 1 or not all(isinstance(each, int) and each >= 0 for each in heads):
        raise CheckpointError(
            source, f"{prefix + _HEADS} = {heads}", "one number of heads, or 0, for each layer"
        )
    kinds = [_ATTENTION if each else mixers.other for each in heads]
    return {"layer_types": kinds, "num_key_value_heads": different.pop()}, {prefix + _HEADS}


def _each(found: Any, layers: int, key: str, source: str, more: int) -> list[Any]:
    if not isinstance(found, list) or len(found) != layers + more:
        raise CheckpointError(source, f"{key} {found!r}", f"{layers + more} values, one for each layer")
    return found[:layers]
