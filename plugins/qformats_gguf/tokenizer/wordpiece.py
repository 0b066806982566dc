"""WordPiece of BERT: tokenizer.json, or vocab.txt, to a GGUF vocabulary.

A token that goes on with a word is ``##ing`` in a folder and ``ing`` in GGUF; one that begins a word is ``sing`` and
``▁sing``. Control tokens are spelled alike. llama.cpp finds the longest token first, as WordPiece does, after it has
removed control characters and split off punctuation and Chinese characters; lower case and accents it is told.

Unlike Transformers, it also splits words of more than 100 characters, which WordPiece gives up.

Source: ggml-org/llama.cpp:conversion/bert.py (``set_vocab``), src/llama-vocab.cpp (``llm_tokenizer_wpm_session``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qformats.errors import CheckpointError, UnsupportedModelError

from ..metadata import Metadata, boolean
from .added import AddedToken, added_tokens, looks_special, token_text
from .backend import ids_of_text
from .files import TokenizerFiles
from .hashes import name_of_ids
from .unlisted import with_unlisted
from .vocabulary import TokenType, Vocabulary, padded_size, padding_token, with_rows

__all__ = [
    "BEGINS",
    "GOES_ON",
    "LOWERCASE",
    "STRIP_ACCENTS",
    "from_tokenizer_json",
    "from_vocab_txt",
    "is_wordpiece",
    "normalizer_metadata",
]

LOWERCASE = "tokenizer.ggml.normalizer.lowercase"
STRIP_ACCENTS = "tokenizer.ggml.normalizer.strip_accents"
BEGINS, GOES_ON = "\u2581", "##"
"""What a token has in front in GGUF if it begins a word, and in a folder if it goes on with one."""
_SPLITS = "llama.cpp removes control characters, and splits off punctuation and Chinese characters"
_USUAL = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
"""Special tokens where a folder without tokenizer.json does not name them."""


def is_wordpiece(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json holds a WordPiece model."""
    model = tokenizer.get("model")
    return isinstance(model, Mapping) and model.get("type") == "WordPiece"


def from_tokenizer_json(files: TokenizerFiles, config: Mapping[str, Any], pre: str | None) -> Vocabulary:
    """Read the vocabulary of a tokenizer.json that holds a WordPiece model.

    Raises
    ------
    CheckpointError
        If the file is malformed.
    UnsupportedModelError
        If it brings text into another form, or splits it otherwise, than BERT does.
    """
    name = "tokenizer.json"
    tokenizer = files.json(name) or {}
    _refuse_strangers(files.path(name), tokenizer)
    if pre is None:
        pre = name_of_ids(ids_of_text(files)) or "default"
    vocabulary = files.vocabulary(name, tokenizer["model"].get("vocab"))
    return _build(files, files.path(name), vocabulary, added_tokens(files, vocabulary), config, pre)


def from_vocab_txt(files: TokenizerFiles, config: Mapping[str, Any], pre: str | None) -> Vocabulary:
    """Read the vocabulary of a folder of a BERT model that has vocab.txt but no tokenizer.json.

    Raises
    ------
    CheckpointError
        If the file is malformed, or lacks a special token.
    UnsupportedModelError
        If the settings say that Chinese characters are not split off.
    """
    name = "vocab.txt"
    vocabulary: dict[str, int] = {}
    for index, token in enumerate((files.text(name) or "").splitlines()):
        if vocabulary.setdefault(token, index) != index:
            raise CheckpointError(files.path(name), f"two lines are {token!r}", "unique tokens")
    if files.settings().get("tokenize_chinese_chars") is False:
        found = "tokenize_chinese_chars"
        raise UnsupportedModelError(f"{files.source}: {found}", False, ["true"], _SPLITS)
    # Each is a text, or an object with one.
    said = files.settings()
    special = [token_text(said.get(f"{role}_token")) or usual for role, usual in _USUAL.items()]
    missing = [token for token in special if token not in vocabulary]
    if missing:
        raise CheckpointError(files.path(name), f"lacks {missing[0]!r}", "a line for every special token")
    added = added_tokens(files, vocabulary)
    added |= {vocabulary[token]: AddedToken(token, special=True) for token in special}
    return _build(files, files.path(name), vocabulary, added, config, pre or "default")


def normalizer_metadata(files: TokenizerFiles) -> Metadata:
    """What is said about lower case and accents, as far as the folder says it."""
    tokenizer = files.json("tokenizer.json")
    if tokenizer is None:
        settings = files.settings()
        said = {LOWERCASE: settings.get("do_lower_case", True), STRIP_ACCENTS: settings.get("strip_accents")}
    else:
        given = tokenizer.get("normalizer") or {}
        said = {LOWERCASE: given.get("lowercase", True), STRIP_ACCENTS: given.get("strip_accents")}
    return {key: boolean(value) for key, value in said.items() if isinstance(value, bool)}


def _refuse_strangers(file: str, tokenizer: Mapping[str, Any]) -> None:
    """Refuse steps other than BERT's own."""
    model, before = tokenizer["model"], tokenizer.get("pre_tokenizer") or {}
    prefix = model.get("continuing_subword_prefix", GOES_ON)
    if prefix != GOES_ON:
        raise UnsupportedModelError(f"{file}: continuing_subword_prefix", prefix, [GOES_ON])
    if before.get("type") != "BertPreTokenizer":
        raise UnsupportedModelError(
            f"{file}: pre_tokenizer", before.get("type"), ["BertPreTokenizer"], _SPLITS
        )
    normalizer = tokenizer.get("normalizer") or {}
    if normalizer.get("type") != "BertNormalizer":
        found = normalizer.get("type")
        raise UnsupportedModelError(f"{file}: normalizer", found, ["BertNormalizer"], _SPLITS)
    for key in ("clean_text", "handle_chinese_chars"):
        if normalizer.get(key, True) is not True:
            raise UnsupportedModelError(f"{file}: normalizer.{key}", normalizer[key], ["true"], _SPLITS)


def _build(
    files: TokenizerFiles,
    file: str,
    vocabulary: Mapping[str, int],
    added: Mapping[int, AddedToken],
    config: Mapping[str, Any],
    pre: str,
) -> Vocabulary:
    added = with_unlisted(files, config, vocabulary, added)
    added = with_rows(config, max(vocabulary.values(), default=-1), added, file)
    ids = {*vocabulary.values(), *added}
    size = padded_size(config, max(ids, default=-1), len(ids), file)
    tokens = [BEGINS + padding_token(index) for index in range(size)]
    types = [int(TokenType.UNUSED)] * size
    for token, index in vocabulary.items():
        goes_on = token.startswith(GOES_ON)
        tokens[index] = token.removeprefix(GOES_ON) if goes_on else BEGINS + token
        types[index] = TokenType.NORMAL
    own = {index: token for token, index in vocabulary.items()}
    for index, entry in added.items():
        if own.get(index, entry.text) != entry.text:
            found = f"added token {entry.text!r} has id {index}, which is {own[index]!r}"
            raise CheckpointError(file, found, "unique ids")
        # Unlike llama.cpp's converter, which puts the mark before those of users too: they are found in raw text.
        tokens[index] = entry.text
        control = entry.special or looks_special(entry.text)
        types[index] = TokenType.CONTROL if control else TokenType.USER_DEFINED
    result = Vocabulary("bert", pre, tokens, types)
    result.check(file)
    return result
