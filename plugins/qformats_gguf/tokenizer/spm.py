"""SentencePiece BPE: tokenizer.model, or the tokenizer.json made from one, to a GGUF vocabulary.

Source: ggml-org/llama.cpp:conversion/base.py (``_create_vocab_sentencepiece``), src/llama-vocab.cpp (the
``llama`` model merges the two neighbours whose joined text has the highest score).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from qformats.errors import CheckpointError, UnsupportedModelError
from qformats.vocabularies import BPE, EVERY, MODEL_TYPES, SPACE, SentencePieceModel, parse

from . import chatglm
from .added import added_tokens, looks_special
from .files import TokenizerFiles
from .listed import listed_tokens
from .unlisted import with_unlisted
from .vocabulary import PAD_SCORE, TokenType, Vocabulary, padded_size, padding_token, with_rows

__all__ = [
    "ALWAYS",
    "EVERY",
    "FIRST",
    "NEVER",
    "SPACE",
    "flat",
    "from_model_file",
    "from_tokenizer_json",
    "space_prefix",
]

ALWAYS, FIRST, NEVER = "always", "first", "never"
"""Besides `EVERY`, where a space goes that the text does not have: the words of the tokenizers library."""

ADDED_SCORE = -1000.0
_SPACES = (SPACE, "\n", "\t")
BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")


def from_model_file(
    files: TokenizerFiles, config: Mapping[str, Any], pre: str | None
) -> tuple[Vocabulary, str]:
    """Read the vocabulary of a tokenizer.model, and where it puts a space that the text does not have.

    Raises
    ------
    CheckpointError
        If the file is malformed.
    UnsupportedModelError
        If it holds a model other than BPE.
    """
    name = "tokenizer.model"
    model = parse(files.bytes(name), files.path(name))
    if model.model_type != BPE or model.suffix_whitespace:
        found = MODEL_TYPES.get(model.model_type, f"type {model.model_type}")
        raise UnsupportedModelError(
            f"{files.path(name)}: SentencePiece model",
            found if model.model_type != BPE else "bpe with whitespace as suffix",
            ["bpe with whitespace as prefix"],
            "llama.cpp's SentencePiece tokenizer merges by score, which would split text differently",
        )
    entries = listed_tokens(files, model.pieces)
    added_score = ADDED_SCORE
    if chatglm.is_chatglm(files, config):
        pre, added_score = pre or chatglm.PRE, _behind(piece.score for piece in model.pieces)
        entries = chatglm.complete(entries, [piece.text for piece in model.pieces], files, config)
    else:
        entries = with_unlisted(files, config, {p.text: i for i, p in enumerate(model.pieces)}, entries)
    entries = with_rows(config, len(model.pieces) - 1, entries, files.path(name))
    prefix = _prefix_of(model, files, config)
    runs = _mergeable_runs(model) if prefix != NEVER else set()
    entries = {i: entry for i, entry in entries.items() if entry.special or entry.text not in runs}
    largest = max([len(model.pieces) - 1, *entries])
    size = padded_size(config, largest, len(model.pieces) + len(entries), files.path(name))
    tokens = [padding_token(index) for index in range(size)]
    scores, types = [PAD_SCORE] * size, [int(TokenType.UNUSED)] * size
    for index, piece in enumerate(model.pieces):
        tokens[index], scores[index], types[index] = piece.text, piece.score, piece.type
        if piece.text in runs:
            types[index] = TokenType.NORMAL
        elif piece.type == TokenType.USER_DEFINED:
            # Unlike llama.cpp's converter, which makes these normal: letters would rarely merge into them.
            tokens[index], types[index] = _marker(piece.text, special=False)
    for index, (text, special) in entries.items():
        tokens[index], types[index] = _marker(text, special=special)
        scores[index] = added_score
    result = Vocabulary("llama", pre or "default", tokens, types, scores)
    result.check(files.path(name))
    return result, prefix


def _prefix_of(model: SentencePieceModel, files: TokenizerFiles, config: Mapping[str, Any]) -> str:
    """Where spaces go: what Transformers reads decides over the model that its file was made from."""
    scheme = space_prefix(files.json("tokenizer.json") or {})
    if scheme is not None:
        return scheme
    if not model.add_dummy_prefix:
        return NEVER
    if chatglm.is_chatglm(files, config):
        return EVERY
    # Transformers' meaning of the flag, and its default.
    return ALWAYS if files.settings().get("legacy", False) else FIRST


def _mergeable_runs(model: SentencePieceModel) -> set[str]:
    """User-defined runs of one space character that merging finds as well, since nothing scores higher.

    llama.cpp begins anew with a space after every token that it finds in the raw text: ``a  b`` would get one more.
    """
    normal = {piece.text: piece.score for piece in model.pieces if piece.type == TokenType.NORMAL}
    highest = max(normal.values(), default=0.0)
    found: set[str] = set()
    for character in set(_SPACES) & set(normal):
        runs = {
            len(piece.text)
            for piece in model.pieces
            if piece.type == TokenType.USER_DEFINED
            and set(piece.text) == {character}
            and piece.score >= highest
        }
        reached = {1}
        for length in sorted(runs):
            if any(length - part in reached for part in reached):
                reached.add(length)
                found.add(character * length)
    return found


def _marker(text: str, *, special: bool) -> tuple[str, TokenType]:
    """Text and type of a token that is found in the raw text, where a space is still a space."""
    if special or looks_special(text):
        return text, TokenType.CONTROL
    return text.replace(SPACE, " "), TokenType.USER_DEFINED


def _behind(scores: Iterable[float]) -> float:
    """Score for added tokens that are plain letters, such as ``sop``: llama.cpp merges letters into them too.

    After every piece, they take only letters that would have stayed apart; with upstream's score, 0, they would
    come before every piece.
    """
    return min(scores) - 1


def space_prefix(tokenizer: Mapping[str, Any]) -> str | None:
    """Where a tokenizer.json made from a SentencePiece model puts a space that the text does not have.

    Parameters
    ----------
    tokenizer : mapping
        The parsed file.

    Returns
    -------
    str or None
        `EVERY`: before the text and after each added token, as llama.cpp does; `ALWAYS`: there too, unless there is
        a space; `FIRST`: before the text only; `NEVER`. None if the file does anything other than SentencePiece
        BPE with byte fallback.
    """
    model = tokenizer.get("model")
    if not isinstance(model, Mapping) or model.get("type", "BPE") != "BPE" or not model.get("byte_fallback"):
        return None
    steps = flat(tokenizer.get("normalizer"), "normalizers")
    prepend = steps[:1] == [("Prepend", SPACE)]
    steps = steps[1:] if prepend else steps
    before = flat(tokenizer.get("pre_tokenizer"), "pretokenizers")
    if steps == [("Replace", " ", SPACE)] and (
        not before or before == [("Split", " ", "MergedWithPrevious")]
    ):
        return EVERY if prepend else NEVER
    if not steps and len(before) == 1 and before[0][:2] == ("Metaspace", SPACE) and not before[0][3]:
        scheme = before[0][2]
        return scheme if scheme in (FIRST, NEVER) else ALWAYS
    return None


def flat(part: Any, key: str) -> list[tuple[Any, ...]]:
    """Steps of a section of tokenizer.json, those of sequences one by one: the kind, and what it does.

    Parameters
    ----------
    part : mapping or None
        The section.
    key : str
        What a sequence calls its steps.
    """
    if not isinstance(part, Mapping):
        return [] if part is None else [("unreadable",)]
    kind = part.get("type")
    if kind == "Sequence":
        steps = part.get(key)
        return [one for step in (steps if isinstance(steps, list) else [0]) for one in flat(step, key)]
    pattern = part.get("pattern")
    literal = pattern.get("String") if isinstance(pattern, Mapping) else None
    if kind == "Prepend":
        return [(kind, part.get("prepend"))]
    if kind == "Replace":
        regex = pattern.get("Regex") if isinstance(pattern, Mapping) else None
        content = part.get("content")
        return [(kind, literal, content) if regex is None else (kind, "Regex", regex, content)]
    if kind == "Strip":
        return [(kind, bool(part.get("strip_left")), bool(part.get("strip_right")))]
    if kind == "Split" and not part.get("invert"):
        return [(kind, literal, str(part.get("behavior")))]
    if kind == "Metaspace":
        scheme = part.get("prepend_scheme", "always" if part.get("add_prefix_space", True) else "never")
        return [(kind, part.get("replacement"), scheme, bool(part.get("split", True)))]
    return [("other", kind)]


def from_tokenizer_json(files: TokenizerFiles, config: Mapping[str, Any], pre: str | None) -> Vocabulary:
    """Read the vocabulary of a tokenizer.json made from a tokenizer.model that is missing.

    Scores are rebuilt from the merges: the earlier the first merge that makes a token, the higher its score.

    Raises
    ------
    CheckpointError
        If the file is malformed.
    """
    name = "tokenizer.json"
    path = files.path(name)
    model = (files.json(name) or {})["model"]
    vocabulary = files.vocabulary(name, model.get("vocab"))
    added = with_unlisted(files, config, vocabulary, added_tokens(files, vocabulary))
    order: dict[str, None] = {}
    for rank, merge in enumerate(model.get("merges") if isinstance(model.get("merges"), list) else []):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise CheckpointError(path, f"merge {rank} is {merge!r}", "two tokens")
        for token in (*parts, "".join(parts)):
            if token not in vocabulary:
                raise CheckpointError(path, f"merge {rank} needs {token!r}", "a token of the vocabulary")
        order["".join(parts)] = None
    if not order:
        raise CheckpointError(path, "no merges", "a list of merges")
    merged = {token: -float(rank) for rank, token in enumerate(order)}
    added = with_rows(config, max(vocabulary.values()), added, path)
    ids = {*vocabulary.values(), *added}
    size = padded_size(config, max(ids), len(ids), path)
    tokens = [padding_token(index) for index in range(size)]
    scores, types = [PAD_SCORE] * size, [int(TokenType.UNUSED)] * size
    for rest, (token, index) in enumerate(sorted(vocabulary.items(), key=lambda item: item[1])):
        tokens[index], types[index] = token, TokenType.NORMAL
        scores[index] = merged.get(token, -float(len(merged) + rest))
        if BYTE.fullmatch(token):
            types[index], scores[index] = TokenType.BYTE, 0.0
    added_score = ADDED_SCORE
    if chatglm.is_chatglm(files, config):
        pre, added_score = pre or chatglm.PRE, _behind(scores[index] for index in vocabulary.values())
    prefix = space_prefix(files.json(name) or {})
    for index, entry in added.items():
        if prefix != NEVER and not entry.special and set(entry.text) == {SPACE} and entry.text in merged:
            # As in `_mergeable_runs`.
            continue
        if types[index] != TokenType.UNUSED and tokens[index] != entry.text:
            raise CheckpointError(
                path, f"added token {entry.text!r} has id {index}, which is {tokens[index]!r}", "unique ids"
            )
        tokens[index], types[index] = _marker(entry.text, special=entry.special)
        scores[index] = added_score
    result = Vocabulary("llama", pre or "default", tokens, types, scores)
    result.check(path)
    return result
