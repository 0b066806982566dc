"""Layers that see a window of the last tokens: ``layer_types`` of Transformers, ``sliding_window_pattern`` of GGUF.

llama.cpp masks what Transformers masks with the same width. Where a file has no pattern, it takes the one of the
architecture: layer i sees everything if i + 1 is a multiple of n.

Source: ggml-org/llama.cpp:src/llama-hparams.h, src/models/*.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qformats.errors import CheckpointError
from qformats_gguf.architectures.limits import Problem
from qformats_gguf.architectures.numbers import config_number, metadata_number
from qformats_gguf.metadata import Metadata, ValueType, array, u32

__all__ = ["WINDOW_KEYS", "complete", "from_metadata", "problems", "slide", "to_metadata"]

WINDOW_KEYS = {"sliding_window", "layer_types", "sliding_window_pattern", "_sliding_window_pattern"}
"""Keys of a configuration that are about windows."""

_KINDS = ("full_attention", "sliding_attention")
_WIDTH, _PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"


def _usual(layers: int, every: int) -> list[str]:
    return [_KINDS[(i + 1) % every != 0] for i in range(layers)]


def complete(config: dict[str, Any], every: int, source: str) -> None:
    """Give a configuration the kind of each layer, in place."""
    if config.get("sliding_window") is not None:
        config_number(config["sliding_window"], "sliding_window", source, whole=True)
    if config.get("layer_types") is None:
        layers, pattern = config["num_hidden_layers"], config.get("sliding_window_pattern") or every
        config_number(pattern, "sliding_window_pattern", source, whole=True)
        every_full = config.get("sliding_window") is None
        config["layer_types"] = [_KINDS[0]] * layers if every_full else _usual(layers, pattern)


def slide(config: Mapping[str, Any]) -> bool:
    """Whether any layer has a window."""
    return _KINDS[1] in config["layer_types"]


def problems(config: Mapping[str, Any]) -> list[Problem]:
    """Kinds of layers that there are not, and sliding layers without a width."""
    kinds, layers = config["layer_types"], config["num_hidden_layers"]
    if not isinstance(kinds, list) or len(kinds) != layers or not set(kinds) <= set(_KINDS):
        return [Problem("layer_types", kinds, _KINDS, f"each of the {layers} layers must be one of these")]
    if _KINDS[1] in kinds and config.get("sliding_window") is None:
        reason = "there are sliding layers, whose width llama.cpp needs"
        return [Problem("sliding_window", None, ("a number of tokens",), reason)]
    return []


def to_metadata(prefix: str, config: Mapping[str, Any], every: int, *, always: bool = False) -> Metadata:
    """Width and pattern, the usual one if it is written `always`; nothing where no layer slides."""
    kinds = config["layer_types"]
    if not slide(config):
        return {}
    found: Metadata = {prefix + _WIDTH: u32(config["sliding_window"])}
    if always or kinds != _usual(len(kinds), every):
        found[prefix + _PATTERN] = array(ValueType.BOOL, [kind == _KINDS[1] for kind in kinds])
    return found


def from_metadata(
    prefix: str, metadata: Metadata, layers: int, every: int, default: int, source: str
) -> tuple[dict[str, Any], set[str]]:
    """Keys of the configuration, and of the metadata that were understood.

    Parameters
    ----------
    layers, every : int
        Layers of the model; the architecture's pattern.
    default : int
        Width that llama.cpp assumes; 0 if it then runs without a window.
    """
    known = {prefix + _WIDTH, prefix + _PATTERN}
    width = metadata_number(metadata, prefix + _WIDTH, source, whole=True, zero=True)
    width = default if width is None else width
    pattern = metadata.get(prefix + _PATTERN)
    if not width:
        return {"sliding_window": None, "layer_types": [_KINDS[0]] * layers}, known
    if pattern is None:
        kinds = _usual(layers, every)
    elif pattern.type is not ValueType.ARRAY:
        kinds = _usual(layers, metadata_number(metadata, prefix + _PATTERN, source, whole=True))
    elif len(pattern.data) != layers:
        found = f"{prefix + _PATTERN} of {len(pattern.data)} layers"
        raise CheckpointError(source, found, f"{layers}, one for each layer")
    else:
        kinds = [_KINDS[bool(each)] for each in pattern.data]
    return {"sliding_window": int(width), "layer_types": kinds}, known
