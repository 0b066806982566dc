"""A vocabulary as GGUF stores it, and the padding it gets."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, TypeVar

from qformats.errors import CheckpointError, ConfigError

from ..metadata import Metadata, ValueType, array, string
from .files import MAX_TOKENS

__all__ = [
    "UNIGRAM",
    "TokenType",
    "Vocabulary",
    "padded_size",
    "padding_token",
    "rows_of",
    "tell_without_rows",
    "with_rows",
]

UNIGRAM = "t5"
"""``tokenizer.ggml.model`` of SentencePiece's unigram models."""
PAD_SCORE = -10000.0
_SHOWN = 5
T = TypeVar("T", bound=tuple[Any, ...])


class TokenType(IntEnum):
    """Values of ``tokenizer.ggml.token_type``, the same as SentencePiece's piece types."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def padding_token(index: int) -> str:
    """Return the text that stands for an id without a token."""
    return f"[PAD{index}]"


def padded_size(config: Mapping[str, Any], largest: int, count: int, file: str) -> int:
    """Count the tokens to write: as many as the model has rows, never fewer than the tokenizer has.

    Parameters
    ----------
    config : mapping
        The model's config.json.
    largest : int
        Largest id of the tokenizer.
    count : int
        Number of its tokens.
    file : str
        File that holds them, for messages.

    Raises
    ------
    ConfigError
        If the configured size is invalid.
    CheckpointError
        If the ids are spread too far to be a vocabulary, or the model has many times as many rows.
    """
    configured = rows_of(config)
    # Real tokenizers have gaps of a few hundred ids, and models some thousand rows more; a few tokens in a table of
    # millions mean damage, and would fill memory with padding.
    most = 4 * count + 65536
    if largest >= most:
        raise CheckpointError(
            file, f"the largest id is {largest}, but there are only {count} tokens", "ids without large gaps"
        )
    if configured > most:
        found = f"{count} tokens, of a model of {configured} rows by its config.json"
        raise CheckpointError(file, found, f"at most {most} rows for so few tokens")
    return max(configured, largest + 1)


def with_rows(config: Mapping[str, Any], own: int, added: Mapping[int, T], file: str) -> dict[int, T]:
    """Leave out added tokens that the model has no row for, with a warning: it can neither read nor write them.

    Parameters
    ----------
    config : mapping
        The model's config.json.
    own : int
        Largest id of the tokenizer without them; the configured size is believed only if it covers this one.
    added : mapping of int to tuple
        Added tokens by id: the text, and what else is known.
    file : str
        File that holds them, for messages.

    Raises
    ------
    ConfigError
        If the configured size is invalid.
    """
    size = rows_of(config)
    beyond = {index: added[index][0] for index in sorted(added) if index >= size > own}
    tell_without_rows(beyond, size, file)
    return {index: entry for index, entry in added.items() if index not in beyond}


def tell_without_rows(beyond: Mapping[int, str], size: int, file: str) -> None:
    """Warn of tokens, given as texts by id, that a model of `size` rows does not have."""
    if beyond:
        named = [f"{text!r} ({index})" for index, text in beyond.items()]
        listed = ", ".join(named[:_SHOWN]) + (", ..." if named[_SHOWN:] else "")
        several = "s" if len(named) > 1 else ""
        warnings.warn(
            f"{file}: left out {len(named)} added token{several} for which the model of {size} rows has none: {listed}",
            UserWarning,
            stacklevel=3,
        )


def rows_of(config: Mapping[str, Any]) -> int:
    """Rows that config.json speaks of; 0 if it does not."""
    text = config.get("text_config")
    sections = [config, text if isinstance(text, Mapping) else {}]
    sizes = [section.get(key) for key in ("padded_vocab_size", "vocab_size") for section in sections]
    configured = next((size for size in sizes if size is not None), 0)
    if not isinstance(configured, int) or isinstance(configured, bool) or not 0 <= configured <= MAX_TOKENS:
        raise ConfigError("config.json: vocab_size", configured, f"an integer up to {MAX_TOKENS}")
    return configured


@dataclass
class Vocabulary:
    """Tokens in the order of their ids.

    Attributes
    ----------
    model : str
        ``gpt2`` (byte-level BPE), ``llama`` (SentencePiece BPE), `UNIGRAM` or ``bert`` (WordPiece).
    pre : str
        Name of the pre-tokenizer.
    tokens, types : list
        One entry per id.
    scores : list of float, optional
        One entry per id; SentencePiece only.
    merges : list of str, optional
        ``"left right"``, best first; byte-level BPE only.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    ids: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.ids = {token: index for index, token in enumerate(self.tokens)}

    def check(self, file: str) -> None:
        """Refuse what llama.cpp does not load.

        Raises
        ------
        CheckpointError
            If two ids have the same text, or a text is not Unicode.
        """
        if not self.tokens:
            raise CheckpointError(file, "no tokens", "a vocabulary")
        if len(self.ids) != len(self.tokens):
            first = next(token for index, token in enumerate(self.tokens) if self.ids[token] != index)
            raise CheckpointError(file, f"two ids have the token {first!r}", "unique tokens")
        try:
            "".join(self.tokens).encode("utf-8")
        except UnicodeEncodeError as error:
            raise CheckpointError(file, "a token has an unpaired surrogate", "Unicode text") from error

    def metadata(self) -> Metadata:
        """Build the vocabulary's keys of a GGUF header."""
        values = {
            "tokenizer.ggml.model": string(self.model),
            "tokenizer.ggml.pre": string(self.pre),
            "tokenizer.ggml.tokens": array(ValueType.STRING, self.tokens),
        }
        if self.scores is not None:
            values["tokenizer.ggml.scores"] = array(ValueType.F32, self.scores)
        values["tokenizer.ggml.token_type"] = array(ValueType.I32, map(int, self.types))
        if self.merges is not None:
            values["tokenizer.ggml.merges"] = array(ValueType.STRING, self.merges)
        return values
