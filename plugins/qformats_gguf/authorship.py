"""Who made a model, from what and under which licence: ``general.*``, by llama.cpp's own rules for model cards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qformats_gguf.metadata import Metadata, Value, ValueType, array

__all__ = ["authorship"]

_LISTS = ("base_model", "base_models", "datasets", "dataset", "language", "languages", "license", "tags")
"""What a card may list; llama.cpp's converter takes a text for a list of one."""


def authorship(card: Mapping[str, Any], config: Mapping[str, Any], name: str, parameters: int) -> Metadata:
    """What convert_hf_to_gguf.py writes of a model card, and of the names of a model.

    Parameters
    ----------
    card : mapping
        Front matter of the model card. What is neither a text nor, where that is usual, a list of texts is left out.
    config : mapping
        The model's config.json, for ``_name_or_path``.
    name : str
        Of the model's folder.
    parameters : int
        Weights, by which a size in the name is told from a context length.

    Returns
    -------
    dict
        With ``general.name`` at least, and no architecture.

    Examples
    --------
    >>> from qformats_gguf.authorship import authorship
    >>> found = authorship({"license": "mit"}, {}, "Tiny-7B-Instruct", 7_000_000_000)
    >>> {key: value.data for key, value in found.items()}
    ... # doctest: +NORMALIZE_WHITESPACE
    {'general.name': 'Tiny 7B Instruct', 'general.finetune': 'Instruct', 'general.basename': 'Tiny',
     'general.size_label': '7B', 'general.license': 'mit'}
    """
    import gguf

    path = config.get("_name_or_path")
    known = {"_name_or_path": path} if isinstance(path, str) and path else {}
    about = gguf.Metadata.apply_metadata_heuristic(
        gguf.Metadata(), _usable(card), known, Path(name), parameters
    )
    about.name = about.name or name
    writer = gguf.GGUFWriter(None, "none")
    about.set_gguf_meta_model(writer)
    found = writer.kv_data[0]
    return {key: _value(value) for key, value in found.items() if key != "general.architecture"}


def _usable(card: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in card.items():
        if isinstance(value, str) and value:
            found[key] = value
        elif key in _LISTS and isinstance(value, list):
            texts = [each for each in value if isinstance(each, str) and each]
            if texts:
                found[key] = texts
    return found


def _value(value: Any) -> Value:
    """A value as the package gguf holds it; only texts are listed."""
    kind = ValueType(int(value.type))
    return array(ValueType.STRING, value.value) if kind == ValueType.ARRAY else Value(kind, value.value)
