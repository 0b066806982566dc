"""How tokens are drawn: settings of generation_config.json, and ``general.sampling.*``, llama.cpp's defaults.

Source: ggml-org/llama.cpp:gguf-py/gguf/metadata.py, src/llama-model.cpp (``LLM_KV_GENERAL_SAMPLING``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from qformats.errors import CheckpointError
from qformats.work.files import parse_json
from qformats_gguf.metadata import Keys, Metadata, f32, i32, string

__all__ = ["from_metadata", "to_metadata"]

_FILE = "generation_config.json"
_PREFIX = "general.sampling."
_KEYS = {
    "sequence": ("sequence", str),
    "top_k": ("top_k", int),
    "top_p": ("top_p", float),
    "min_p": ("min_p", float),
    "xtc_probability": ("xtc_probability", float),
    "xtc_threshold": ("xtc_threshold", float),
    "temperature": ("temp", float),
    "penalty_last_n": ("penalty_last_n", int),
    "penalty_repeat": ("penalty_repeat", float),
    "mirostat": ("mirostat", int),
    "mirostat_tau": ("mirostat_tau", float),
    "mirostat_eta": ("mirostat_eta", float),
}
"""Settings, and llama.cpp's names of them."""
_DRAWN = ("top_k", "top_p", "min_p", "temperature")
"""Settings that Transformers takes, where it draws tokens."""


def to_metadata(files: Mapping[str, bytes], source: str) -> Metadata:
    """Keys for the settings of a folder; none if there are none.

    Raises
    ------
    CheckpointError
        If a setting is not of its kind.
    """
    if _FILE not in files:
        return {}
    name = f"{source}/{_FILE}"
    try:
        given = parse_json(files[_FILE].decode("utf-8"))
    except ValueError as error:
        raise CheckpointError(name, f"not readable as JSON ({error})") from error
    found: Metadata = {}
    for setting, (key, kind) in _KEYS.items():
        value = given.get(setting) if isinstance(given, dict) else None
        if value is None:
            continue
        number = not isinstance(value, bool) and isinstance(value, int | float)
        fits = isinstance(value, str) if kind is str else number and (kind is float or value == int(value))
        if not fits:
            expected = {str: "a text", int: "a whole number", float: "a number"}[kind]
            raise CheckpointError(name, f"{setting} {json.dumps(value)}", expected)
        make = {str: string, int: lambda each: i32(int(each)), float: f32}[kind]
        found[_PREFIX + key] = make(value)
    return found


def from_metadata(metadata: Metadata, source: str) -> dict[str, Any]:
    """Settings for generation_config.json, where tokens are drawn if there are settings for it, as llama.cpp does."""
    keys = Keys(metadata, source)
    found: dict[str, Any] = {}
    for setting, (key, kind) in _KEYS.items():
        key = _PREFIX + key
        if key not in metadata:
            continue
        if kind is str:
            found[setting] = keys.text(key)
        elif kind is int:
            found[setting] = keys.integer(key)
        else:
            # The shortest number that is the same in float32: as it was written.
            found[setting] = float(str(np.float32(keys.number(key))))
    if any(setting in found for setting in _DRAWN):
        found["do_sample"] = True
    return found
