"""Vocabulary files of other programs, and the tokenizer.json that splits text as they do.

============  ==============================================  ====================
kind          file                                            read with
============  ==============================================  ====================
SentencePiece  ``tokenizer.model``, ``ice_text.model``         `parse`
tiktoken      lines of base64 and rank                        `parse_ranks`
============  ==============================================  ====================

Neither sentencepiece, protobuf nor tiktoken is needed.
"""

from __future__ import annotations

from .library import library_failed, using_library
from .merges import merges_by_rank, merges_by_score
from .sections import (
    EVERY,
    SPACE,
    added_token,
    around,
    byte_level_sections,
    sentencepiece_bpe_sections,
    sentencepiece_unigram_sections,
)
from .sentencepiece import (
    BPE,
    MODEL_TYPES,
    UNIGRAM,
    Piece,
    PieceType,
    SentencePieceModel,
    parse,
    serialize,
)
from .tiktoken import parse_ranks

__all__ = [
    "BPE",
    "EVERY",
    "MODEL_TYPES",
    "SPACE",
    "UNIGRAM",
    "Piece",
    "PieceType",
    "SentencePieceModel",
    "added_token",
    "around",
    "byte_level_sections",
    "library_failed",
    "merges_by_rank",
    "merges_by_score",
    "parse",
    "parse_ranks",
    "sentencepiece_bpe_sections",
    "sentencepiece_unigram_sections",
    "serialize",
    "using_library",
]
