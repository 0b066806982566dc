"""What Transformers does around added tokens and GGUF has no place for: spaces removed, whole words only.

llama.cpp decides this by the model's name alone, for Phi-3 and Jina's embeddings.
Source: ggml-org/llama.cpp:src/llama-vocab.cpp (``LLAMA_TOKEN_ATTR_RSTRIP``).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from ..metadata import Metadata, ValueType, array
from .added import ROLES, token_text
from .ends import INTEGERS
from .files import TokenizerFiles
from .vocabulary import UNIGRAM, TokenType, Vocabulary

__all__ = ["FLAGS", "stored_flags", "surroundings_metadata"]

FLAGS: Mapping[str, str] = {
    "lstrip": "removes the spaces before",
    "rstrip": "removes the spaces after",
    "single_word": "finds only as whole words",
}
"""Flags of an added token, and what Transformers does, in words."""
_SHOWN = 5


def surroundings_metadata(files: TokenizerFiles, vocabulary: Vocabulary) -> Metadata:
    """Keep the flags for the way back, and warn of the tokens for which llama.cpp splits text differently.

    Parameters
    ----------
    files : TokenizerFiles
        The folder, whose lists are known to be well-formed.
    vocabulary : Vocabulary
        The tokens; only control and user-defined ones are found in raw text.
    """
    flags: dict[str, Mapping[str, Any]] = {}
    for text, entry in _entries(files):
        flags.setdefault(text, entry)
    values: Metadata = {}
    for flag, does in FLAGS.items():
        ids = sorted(
            index
            for text, entry in flags.items()
            if entry.get(flag) is True
            and (index := vocabulary.ids.get(text)) is not None
            and vocabulary.types[index] in (TokenType.CONTROL, TokenType.USER_DEFINED)
        )
        if not ids:
            continue
        values[_key(flag)] = array(ValueType.I32, ids)
        if vocabulary.model == UNIGRAM and flag != "single_word":
            # Spaces at both ends of what is between such tokens are dropped on both sides.
            continue
        named = ", ".join(f"{vocabulary.tokens[index]!r} ({index})" for index in ids[:_SHOWN])
        more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
        warnings.warn(
            f"{files.source}: llama.cpp has no {flag}, by which Transformers {does} {named}{more}: "
            "write prompts without such spaces"
            if flag != "single_word"
            else f"{files.source}: llama.cpp also finds {named}{more} inside words, where Transformers does not",
            UserWarning,
            stacklevel=2,
        )
    return values


def stored_flags(metadata: Metadata, size: int) -> dict[int, dict[str, bool]]:
    """Read the flags that `surroundings_metadata` has kept, by id.

    Parameters
    ----------
    metadata : Metadata
        Key-value section of a GGUF file.
    size : int
        Number of its tokens.
    """
    found: dict[int, dict[str, bool]] = {}
    for flag in FLAGS:
        value = metadata.get(_key(flag))
        if value is not None and value.type == ValueType.ARRAY and value.item in INTEGERS:
            for index in value.data:
                if 0 <= int(index) < size:
                    found.setdefault(int(index), {})[flag] = True
    return found


def _key(flag: str) -> str:
    return f"qformats.tokenizer.{flag}"


def _entries(files: TokenizerFiles) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Added tokens with flags, those that decide first."""
    decoder = (files.json("tokenizer_config.json") or {}).get("added_tokens_decoder") or {}
    listed = (files.json("tokenizer.json") or {}).get("added_tokens") or []
    settings = files.settings()
    more = settings.get("extra_special_tokens") or settings.get("additional_special_tokens")
    named = [settings.get(f"{role}_token") for role in ROLES]
    named += more.values() if isinstance(more, dict) else more if isinstance(more, list) else []
    for entry in (*decoder.values(), *listed, *named):
        text = token_text(entry)
        if text is not None and isinstance(entry, Mapping):
            yield text, entry
