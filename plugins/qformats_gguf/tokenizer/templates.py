"""Chat templates between a folder and GGUF metadata; they are carried as text and never run.

Source: ggml-org/llama.cpp:gguf-py/gguf/gguf_writer.py (``add_chat_template``).
"""

from __future__ import annotations

import warnings

from qformats.folder import chat_templates

from ..metadata import Metadata, ValueType, array, string
from .files import TokenizerFiles

__all__ = ["TEMPLATE", "TEMPLATES", "clean_name", "template_metadata"]

TEMPLATE = "tokenizer.chat_template"
TEMPLATES = "tokenizer.chat_templates"


def clean_name(name: str) -> str:
    """Keep only letters and digits of ASCII of a template's name, as llama.cpp's writer does."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in name)


def template_metadata(files: TokenizerFiles) -> Metadata:
    """Build the keys of the default chat template and of those with names.

    Raises
    ------
    CheckpointError
        If a template is malformed.
    """
    found: dict[str, str] = {}
    default = None
    for name, text in chat_templates(files.contents, files.source).items():
        key = clean_name(name)
        if name == "default":
            default = text
        elif key in found:
            said = f"{files.source}: left out chat template {name!r}, since another one is also {key!r} in a GGUF file"
            warnings.warn(said, UserWarning, stacklevel=2)
        elif key:
            found[key] = text
    values: Metadata = {f"{TEMPLATE}.{name}": string(text) for name, text in found.items()}
    if found:
        values[TEMPLATES] = array(ValueType.STRING, found)
    if default is not None:
        values[TEMPLATE] = string(default)
    return values
