"""Sections of a tokenizer.json for vocabularies of SentencePiece and tiktoken, as the tokenizers library reads them."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from .merges import merges_by_rank, merges_by_score

__all__ = [
    "EVERY",
    "SPACE",
    "added_token",
    "around",
    "byte_level_sections",
    "sentencepiece_bpe_sections",
    "sentencepiece_unigram_sections",
]

SPACE = "\u2581"
"""What SentencePiece writes for a space."""
EVERY = "every"
"""A space goes before the text and after each added token."""

_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


def added_token(index: int, text: str, *, special: bool) -> dict[str, Any]:
    """Build an entry of ``added_tokens``: a token that is found in the raw text before anything else.

    Examples
    --------
    >>> from qformats.vocabularies import added_token
    >>> added_token(7, "<|user|>", special=True)["content"]
    '<|user|>'
    """
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": text, **flags, "special": special}


def around(before: Sequence[tuple[str, int]], after: Sequence[tuple[str, int]] = ()) -> dict[str, Any] | None:
    """Build the post-processor that puts tokens, given by text and id, before and after every text.

    Returns
    -------
    dict or None
        None if there are no such tokens.

    Examples
    --------
    >>> from qformats.vocabularies import around
    >>> around([("<s>", 1)])["single"][0]
    {'SpecialToken': {'id': '<s>', 'type_id': 0}}
    """
    if not before and not after:
        return None

    def sequence(name: str, kind: int) -> list[dict[str, Any]]:
        return [
            *({"SpecialToken": {"id": text, "type_id": kind}} for text, _ in before),
            {"Sequence": {"id": name, "type_id": kind}},
            *({"SpecialToken": {"id": text, "type_id": kind}} for text, _ in after),
        ]

    return {
        "type": "TemplateProcessing",
        "single": sequence("A", 0),
        "pair": sequence("A", 0) + sequence("B", 1),
        "special_tokens": {
            text: {"id": text, "ids": [index], "tokens": [text]} for text, index in (*before, *after)
        },
    }


def sentencepiece_bpe_sections(
    vocabulary: Mapping[str, int],
    scores: Mapping[str, float],
    unknown: str | None,
    *,
    prefix: bool,
    scheme: str = EVERY,
) -> dict[str, Any]:
    """Build the sections that split text as a BPE model of SentencePiece does, with byte fallback.

    Parameters
    ----------
    vocabulary : mapping of str to int
        Every token.
    scores : mapping of str to float
        Score of each normal token, in the order of the ids.
    unknown : str or None
        Text of the unknown token.
    prefix : bool
        Put a space before the text.
    scheme : {"every", "always", "first"}
        With `prefix`: where else. ``"always"`` and ``"first"`` are the words of the tokenizers library.

    Examples
    --------
    >>> import json
    >>> from tokenizers import Tokenizer
    >>> from qformats.vocabularies import SPACE, sentencepiece_bpe_sections
    >>> scores = {SPACE: -4.0, "a": -3.0, "b": -2.0, "ab": -1.0}
    >>> vocabulary = {token: index for index, token in enumerate(["<unk>", *scores])}
    >>> made = sentencepiece_bpe_sections(vocabulary, scores, "<unk>", prefix=True)
    >>> Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": [], **made})).encode("ab").tokens
    ['▁', 'ab']
    """
    decoder: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoder.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    before = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    # What Transformers writes in either case.
    spaces: dict[str, Any] = {
        "normalizer": {"type": "Sequence", "normalizers": [*before, _SPACES]},
        "pre_tokenizer": None,
    }
    if prefix and scheme != EVERY:
        metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}
        spaces = {"normalizer": None, "pre_tokenizer": metaspace}
    return {
        **spaces,
        "decoder": {"type": "Sequence", "decoders": decoder},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": dict(vocabulary),
            "merges": merges_by_score(scores),
        },
    }


def sentencepiece_unigram_sections(
    pieces: Sequence[tuple[str, float]],
    unknown: int,
    *,
    charsmap: bytes,
    before: Sequence[Mapping[str, Any]] = (),
    after: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Build the sections that split text as a unigram model of SentencePiece does, with byte fallback.

    Spaces at both ends are dropped, several become one, and one is put before the text.

    Parameters
    ----------
    pieces : sequence of (str, float)
        Text and score by id.
    unknown : int
        Id of the unknown token.
    charsmap : bytes
        Table of Unicode normalization, from the model; empty for none.
    before : sequence of mapping
        Normalizers that come first.
    after : sequence of mapping
        Decoders that come last.

    Examples
    --------
    >>> import json
    >>> from tokenizers import Tokenizer
    >>> from qformats.vocabularies import SPACE, sentencepiece_unigram_sections
    >>> pieces = [("<unk>", 0.0), (SPACE, -3.0), ("a", -4.0), ("b", -4.0), ("ab", -5.0)]
    >>> made = sentencepiece_unigram_sections(pieces, 0, charsmap=b"")
    >>> Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": [], **made})).encode("  ab ").tokens
    ['▁', 'ab']
    """
    table = base64.b64encode(charsmap).decode()
    return {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                *before,
                *([{"type": "Precompiled", "precompiled_charsmap": table}] if charsmap else []),
                {"type": "Strip", "strip_left": True, "strip_right": True},
                {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
                {"type": "Prepend", "prepend": SPACE},
                _SPACES,
            ],
        },
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
                *after,
            ],
        },
        "model": {
            "type": "Unigram",
            "unk_id": unknown,
            "byte_fallback": True,
            "vocab": [[text, score] for text, score in pieces],
        },
    }


def byte_level_sections(ranks: Mapping[bytes, int], pattern: str) -> dict[str, Any]:
    r"""Build the sections that split text as tiktoken does.

    Parameters
    ----------
    ranks : mapping of bytes to int
        Tokens and their ids.
    pattern : str
        Regular expression whose matches are split further.

    Examples
    --------
    >>> import json
    >>> from tokenizers import Tokenizer
    >>> from qformats.vocabularies import byte_level_sections
    >>> ranks = {bytes([at]): at for at in range(256)} | {b"ab": 256}
    >>> made = byte_level_sections(ranks, r"\w+|\W+")
    >>> Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": [], **made})).encode("ab a").ids
    [256, 32, 97]
    """
    letters = _letters()

    def spelled(token: bytes) -> str:
        return token.decode("latin-1").translate(letters)

    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            # tiktoken looks a whole match up before it joins bytes.
            "ignore_merges": True,
            "vocab": {spelled(token): index for token, index in ranks.items()},
            "merges": [[spelled(left), spelled(right)] for left, right in merges_by_rank(ranks)],
        },
    }


def _letters() -> dict[int, int]:
    """Map each byte to the printable character that byte-level tokenizers write for it."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {byte: byte for byte in plain} | {byte: 0x100 + at for at, byte in enumerate(others)}
