"""What sentence-transformers keeps beside a model that makes embeddings: how tokens become one, and prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qformats.work.files import refuse_link_out

__all__ = ["sentence_files", "sentence_note"]

_MODULES = "modules.json"
_FILES = (
    _MODULES,
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "*_Pooling/config.json",
)
_PLAIN = ("Transformer", "Pooling", "Normalize")
"""Modules without weights of their own, and the model itself."""


def sentence_files(folder: Path) -> list[Path]:
    """Those files of a folder; none if other modules with weights belong to them, which would be missing."""
    if _others(folder):
        return []
    return [file for pattern in _FILES for file in sorted(folder.glob(pattern))]


def sentence_note(folder: Path) -> tuple[str, ...]:
    """Tells of modules that are left out."""
    others = _others(folder)
    if not others:
        return ()
    listed = " and ".join(others)
    return (
        f"{_MODULES} names {listed}, which is left out with the rest of it: only the Transformer is read",
    )


def _others(folder: Path) -> list[str]:
    """Kinds of modules that are not carried; what is unreadable is told by whoever needs it."""
    file = folder / _MODULES
    if not file.is_file():
        return []
    refuse_link_out(file, folder)
    try:
        modules: Any = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return []
    kinds = [
        str(module.get("type")).rpartition(".")[2]
        for module in (modules if isinstance(modules, list) else [])
        if isinstance(module, dict)
    ]
    return sorted(set(kinds) - set(_PLAIN))
