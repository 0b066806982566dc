"""Qwen 1: ranks of tiktoken (``qwen.tiktoken``), followed by special tokens that only the model's code names.

Sources: the model's tokenizer class (tokenization_qwen.py), of which nothing is run; llama.cpp's conversion/qwen.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from qformats.vocabularies import added_token, byte_level_sections, parse_ranks

from .files import TokenizerFiles

__all__ = ["RANKS", "completed"]

RANKS = "qwen.tiktoken"
_END = "<|endoftext|>"
_SPECIAL = (_END, "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205)))
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def completed(files: Mapping[str, bytes], source: str = "") -> Mapping[str, bytes]:
    """Add the tokenizer.json that splits text as ``qwen.tiktoken`` and the model's code do.

    Parameters
    ----------
    files : mapping of str to bytes
        The folder's tokenizer files; they are returned as they are if there is a tokenizer.json, or no ranks.
    source : str
        The folder's name, for messages.

    Raises
    ------
    CheckpointError
        If a file is malformed.
    """
    if RANKS not in files or "tokenizer.json" in files:
        return files
    folder = TokenizerFiles(files, source)
    ranks = parse_ranks(folder.bytes(RANKS), folder.path(RANKS))
    added = [added_token(len(ranks) + at, text, special=True) for at, text in enumerate(_SPECIAL)]
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "post_processor": None,
        **byte_level_sections(ranks, _PATTERN),
        "normalizer": {"type": "NFC"},
    }
    # As llama.cpp's converter has it where no file names a token.
    roles = {f"{role}_token": _END for role in ("bos", "eos", "unk", "pad")}
    settings = {**roles, "add_bos_token": False, **(folder.json("tokenizer_config.json") or {})}
    generation = {"eos_token_id": len(ranks)}
    return {
        "generation_config.json": json.dumps(generation).encode(),
        **files,
        "tokenizer.json": json.dumps(tokenizer).encode(),
        "tokenizer_config.json": json.dumps(settings).encode(),
    }
