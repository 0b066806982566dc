"""Byte-level BPE: tokenizer.json, or vocab.json with merges.txt, to a GGUF vocabulary.

Source: ggml-org/llama.cpp:conversion/base.py (``get_vocab_base``), gguf-py/gguf/vocab.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from qformats.errors import CheckpointError, UnsupportedModelError
from qformats.vocabularies import using_library

from .added import added_tokens, looks_special
from .backend import ids_of_text
from .files import TokenizerFiles
from .hashes import name_of_ids
from .recognize import checked_name, choose, nearest, splitter_of
from .unlisted import with_unlisted
from .vocabulary import TokenType, Vocabulary, padded_size, padding_token, with_rows

__all__ = ["from_slow_files", "from_tokenizer_json", "is_byte_level"]

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_SLOW_CLASSES = {"GPT2Tokenizer": "gpt-2", "Qwen2Tokenizer": "qwen2"}
# Names that a model's type suggests if tokenizer.json alone does not decide.
_PREFERRED = {
    "chatglm": ("glm4", "chatglm-bpe"),
    "glm": ("glm4", "chatglm-bpe"),
    "glm4": ("glm4", "chatglm-bpe"),
    "glm4_moe": ("glm4", "chatglm-bpe"),
}


def is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json holds a byte-level BPE model."""
    model = tokenizer.get("model")
    if not isinstance(model, Mapping) or model.get("type", "BPE") != "BPE" or model.get("byte_fallback"):
        return False
    return any(_mentions_byte_level(tokenizer.get(part)) for part in ("pre_tokenizer", "decoder"))


def _mentions_byte_level(part: Any) -> bool:
    if not isinstance(part, Mapping):
        return False
    if part.get("type") == "ByteLevel":
        return True
    inner = [part.get(key) for key in ("pretokenizers", "decoders")]
    return any(_mentions_byte_level(step) for steps in inner if isinstance(steps, list) for step in steps)


def from_tokenizer_json(files: TokenizerFiles, config: Mapping[str, Any], pre: str | None) -> Vocabulary:
    """Read the vocabulary of a tokenizer.json that holds a byte-level BPE model.

    Raises
    ------
    CheckpointError
        If the file is malformed.
    UnsupportedModelError
        If llama.cpp has no name for the way it splits text, or cannot represent the model.
    """
    name = "tokenizer.json"
    tokenizer = files.json(name) or {}
    model = tokenizer["model"]
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise UnsupportedModelError(f"{files.path(name)}: {key}", model[key], ["no value"])
    vocabulary = files.vocabulary(name, model.get("vocab"))
    merges = _merges(files.path(name), model.get("merges"), vocabulary)
    if pre is None:
        pre = choose(
            splitter_of(tokenizer),
            ignore_merges=bool(model.get("ignore_merges")),
            prefer=_PREFERRED.get(str(config.get("model_type")), ()),
            hashed=lambda: name_of_ids(ids_of_text(files)),
            merges_reach_all=_reach_check(vocabulary, merges, files.path(name)),
            alike=lambda: nearest(tokenizer),
            source=files.source,
        )
    return _build(files, files.path(name), vocabulary, merges, config, checked_name(pre))


def from_slow_files(files: TokenizerFiles, config: Mapping[str, Any], pre: str | None) -> Vocabulary:
    """Read the vocabulary of a folder that has vocab.json and merges.txt but no tokenizer.json.

    Raises
    ------
    CheckpointError
        If a file is missing or malformed.
    UnsupportedModelError
        If nothing says how the model splits text.
    """
    if "merges.txt" not in files:
        raise CheckpointError(files.path("merges.txt"), "is missing", "merges.txt beside vocab.json")
    vocabulary = files.vocabulary("vocab.json", files.json("vocab.json"))
    lines = (files.text("merges.txt") or "").splitlines()
    merges = _merges(
        files.path("merges.txt"),
        [
            line
            for number, line in enumerate(lines)
            if line.strip() and not (number == 0 and line.startswith("#"))
        ],
        vocabulary,
    )
    if pre is None:
        found = files.settings().get("tokenizer_class")
        known = _SLOW_CLASSES.get(str(found).removesuffix("Fast"))
        if known is None:
            raise UnsupportedModelError(
                f"{files.source}: tokenizer_class of a folder without tokenizer.json",
                found,
                _SLOW_CLASSES,
                "save the tokenizer with Transformers to get a tokenizer.json, or name the pre-tokenizer "
                "with --pre NAME",
            )
        pre = known
    return _build(files, files.path("vocab.json"), vocabulary, merges, config, checked_name(pre))


def _merges(file: str, value: Any, vocabulary: Mapping[str, int]) -> list[str]:
    if not isinstance(value, list):
        raise CheckpointError(file, f"merges of type {type(value).__name__}", "a list")
    merges = []
    for rank, entry in enumerate(value):
        if isinstance(entry, str):
            # A token may begin with a space only in vocabularies that are not byte-level.
            left, _, right = entry.partition(" ")
        elif isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry):
            left, right = entry
        else:
            left = right = ""
        if not left or not right:
            raise CheckpointError(file, f"merge {rank} is {entry!r}", "two tokens")
        for token in (left, right, left + right):
            if token not in vocabulary:
                raise CheckpointError(
                    file,
                    f"merge {rank} ({left!r} with {right!r}) needs {token!r}",
                    "a token of the vocabulary",
                )
        # A space inside a part would end the part; llama.cpp spells it like a byte.
        merges.append(f"{left} {right}" if isinstance(entry, str) else " ".join(_spaceless(entry)))
    return merges


def _spaceless(parts: Iterable[str]) -> list[str]:
    return [part.replace(" ", "\u0120") for part in parts]


def _build(
    files: TokenizerFiles,
    file: str,
    vocabulary: Mapping[str, int],
    merges: list[str],
    config: Mapping[str, Any],
    pre: str,
) -> Vocabulary:
    added = with_unlisted(files, config, vocabulary, added_tokens(files, vocabulary))
    added = with_rows(config, max(vocabulary.values(), default=-1), added, file)
    ids = {*vocabulary.values(), *added}
    size = padded_size(config, max(ids, default=-1), len(ids), file)
    by_id: list[str | None] = [None] * size
    types = [int(TokenType.UNUSED)] * size
    for token, index in vocabulary.items():
        by_id[index], types[index] = token, TokenType.NORMAL
    for index, entry in added.items():
        if by_id[index] not in (None, entry.text):
            raise CheckpointError(
                file, f"added token {entry.text!r} has id {index}, which is {by_id[index]!r}", "unique ids"
            )
        if entry.special or looks_special(entry.text):
            by_id[index], types[index] = entry.text, TokenType.CONTROL
        else:
            # llama.cpp looks for these in raw text.
            by_id[index], types[index] = entry.text.replace("\u2581", " "), TokenType.USER_DEFINED
    tokens = [padding_token(index) if token is None else token for index, token in enumerate(by_id)]
    result = Vocabulary("gpt2", pre, tokens, types, merges=merges)
    result.check(file)
    return result


def _reach_check(vocabulary: Mapping[str, int], merges: list[str], file: str) -> Callable[[], bool]:
    def reach_all() -> bool:
        """Whether every token is what merging its own characters gives."""
        from tokenizers.models import BPE

        pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
        with using_library(file, "the tokenizers library cannot use its vocabulary"):
            model = BPE(vocab=dict(vocabulary), merges=pairs)
            return all(
                len(token) < 2 or [piece.id for piece in model.tokenize(token)] == [index]
                for token, index in vocabulary.items()
                if _is_byte_spelled(token)
            )

    return reach_all


def _is_byte_spelled(token: str) -> bool:
    # Others (special tokens kept in the vocabulary) are never words: their characters are not in GPT-2's alphabet.
    return not (token.startswith("<") and token.endswith(">")) and all("!" <= c <= "\u0143" for c in token)
