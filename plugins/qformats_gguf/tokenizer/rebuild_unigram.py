"""The unigram tokenizer of a GGUF file, as a folder of XLM-RoBERTa has it; see `unigram`."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from qformats.errors import CheckpointError, UnsupportedModelError
from qformats.vocabularies import SPACE

from .spm import ALWAYS, FIRST
from .vocabulary import PAD_SCORE, TokenType, padding_token

__all__ = ["INPUTS", "around_two", "tokenizer_json", "usual_roles"]

INPUTS = ["input_ids", "attention_mask"]
"""What such a tokenizer makes: it tells no first text from a second."""
_USUAL = {"eos": 1, "unk": 2, "pad": 0}
"""What llama.cpp assumes where a file does not say it: the ids of T5."""


def usual_roles(roles: Mapping[str, int], size: int) -> dict[str, int]:
    """Ids of the special tokens, with those that the loader assumes."""
    return {role: index for role, index in _USUAL.items() if index < size} | dict(roles)


def tokenizer_json(
    tokens: Sequence[str],
    types: Sequence[int],
    scores: Sequence[float],
    unknown: int,
    *,
    charsmap: bytes,
    removes_spaces: bool,
    prefix: bool,
    first: bool,
    file: str,
) -> dict[str, Any]:
    """Build the sections of a tokenizer.json that splits text as llama.cpp's unigram tokenizer does.

    Parameters
    ----------
    tokens, types, scores : sequence
        One entry per id.
    unknown : int
        Id of the unknown token.
    charsmap : bytes
        Table of Unicode normalization; empty for none.
    removes_spaces, prefix : bool
        What the file says about spaces.
    first : bool
        Whether a space is put before the text only, and not after each added token too.
    file : str
        The GGUF file, for messages.

    Raises
    ------
    CheckpointError
        If there is no unknown token.
    UnsupportedModelError
        If spaces are kept as they are, or none is put before a text.
    """
    if not 0 <= unknown < len(tokens):
        raise CheckpointError(file, "no unknown token", "the id of one")
    if not removes_spaces:
        key = f"{file}: tokenizer.ggml.remove_extra_whitespaces"
        raise UnsupportedModelError(key, False, ["true"], "no tokenizer.json splits text so")
    if not prefix:
        raise UnsupportedModelError(f"{file}: tokenizer.ggml.add_space_prefix", False, ["true"])
    padding = [
        kind == TokenType.UNUSED and token == padding_token(index)
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
    ]
    last = max(index for index, nothing in enumerate(padding) if not nothing)
    lowest = min(
        (score for score, kind in zip(scores, types, strict=True) if kind == TokenType.NORMAL),
        default=PAD_SCORE,
    )
    # The library's score of unknown letters follows from the lowest of all, llama.cpp's from that of plain tokens.
    vocab = [[tokens[at], float(max(scores[at], lowest))] for at in range(last + 1)]
    space = {
        "type": "Metaspace",
        "replacement": SPACE,
        "prepend_scheme": FIRST if first else ALWAYS,
        "split": True,
    }
    table = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}
    return {
        "normalizer": table if charsmap else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, space]},
        "decoder": {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": ALWAYS, "split": True},
        "model": {"type": "Unigram", "unk_id": unknown, "vocab": vocab, "byte_fallback": False},
    }


def around_two(
    first: Sequence[tuple[str, int]], last: Sequence[tuple[str, int]], *, twice: bool
) -> dict[str, Any]:
    """What is put around a text, and around two: all of the first kind.

    Parameters
    ----------
    first, last : sequence of (str, int)
        Text and id of the tokens before a text, and of those after it.
    twice : bool
        Whether the last ones come twice between two texts, as RoBERTa has it.
    """

    def special(tokens: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": text, "type_id": 0}} for text, _ in tokens]

    one = [*special(first), {"Sequence": {"id": "A", "type_id": 0}}, *special(last)]
    two = [*(special(last) if twice else []), {"Sequence": {"id": "B", "type_id": 0}}, *special(last)]
    return {
        "type": "TemplateProcessing",
        "single": one,
        "pair": one + two,
        "special_tokens": {text: {"id": text, "ids": [at], "tokens": [text]} for text, at in (*first, *last)},
    }
