"""SentencePiece parts of a rebuilt tokenizer: merges from scores, and a tokenizer.model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qformats.vocabularies import (
    BPE,
    EVERY,
    SPACE,
    Piece,
    SentencePieceModel,
    sentencepiece_bpe_sections,
    serialize,
)

from .spm import ADDED_SCORE
from .vocabulary import TokenType

__all__ = ["PREPEND_SCHEME", "added_decoder", "model_file", "tokenizer_json"]

PREPEND_SCHEME = "qformats.tokenizer.prepend_scheme"
"""``first`` or ``always``, where Transformers puts fewer spaces than llama.cpp, which always puts one before the text
and after each added token."""


def tokenizer_json(
    tokens: Sequence[str],
    types: Sequence[int],
    scores: Sequence[float],
    kept: Mapping[str, int],
    roles: Mapping[str, int],
    *,
    prefix: bool,
    scheme: str = EVERY,
) -> dict[str, Any]:
    """Build the sections of a tokenizer.json that splits text as SentencePiece does: BPE with byte fallback.

    Parameters
    ----------
    tokens, types, scores : sequence
        One entry per id.
    kept : mapping of str to int
        Tokens that become part of the vocabulary.
    roles : mapping of str to int
        Special ids.
    prefix : bool
        Put a space before the text.
    scheme : {"every", "always", "first"}
        With `prefix`: where else.
    """
    unknown = _unknown(types, roles)
    normal = {token: scores[index] for token, index in kept.items() if types[index] == TokenType.NORMAL}
    text = None if unknown is None else tokens[unknown]
    return sentencepiece_bpe_sections(kept, normal, text, prefix=prefix, scheme=scheme)


def _unknown(types: Sequence[int], roles: Mapping[str, int]) -> int | None:
    return roles.get("unk", next((i for i, kind in enumerate(types) if kind == TokenType.UNKNOWN), None))


def added_decoder(added: Iterable[Mapping[str, Any]], scores: Sequence[float]) -> dict[str, Any]:
    """Rebuild ``added_tokens_decoder``: the tokens whose score says that a converter took them from it."""
    return {
        str(entry["id"]): {key: value for key, value in entry.items() if key != "id"}
        for entry in added
        if scores[entry["id"]] == ADDED_SCORE
    }


def model_file(
    tokens: Sequence[str],
    types: Sequence[int],
    scores: Sequence[float],
    kept: Mapping[str, int],
    roles: Mapping[str, int],
    *,
    prefix: bool,
) -> bytes | None:
    """Build a tokenizer.model for loaders that need one; None without an unknown token, which it must have.

    Parameters are those of `tokenizer_json`.
    """
    unknown = _unknown(types, roles)
    if unknown is None:
        return None
    last = max(kept.values())
    pieces = []
    for index in range(last + 1):
        kind = int(types[index])
        if index == unknown:
            kind = TokenType.UNKNOWN
        elif kind == TokenType.UNKNOWN:
            kind = TokenType.CONTROL
        elif not TokenType.NORMAL <= kind <= TokenType.BYTE:
            kind = TokenType.NORMAL
        text = tokens[index]
        if kind == TokenType.USER_DEFINED:
            text = text.replace(" ", SPACE)
        pieces.append(Piece(text, float(scores[index]), kind))
    if len({piece.text for piece in pieces}) != len(pieces):
        return None
    model = SentencePieceModel(
        pieces,
        model_type=BPE,
        byte_fallback=sum(piece.type == TokenType.BYTE for piece in pieces) == 256,
        add_dummy_prefix=prefix,
        ids={role: roles[role] for role in ("bos", "eos", "pad") if role in roles and roles[role] <= last}
        | {"unk": unknown},
    )
    return serialize(model)
