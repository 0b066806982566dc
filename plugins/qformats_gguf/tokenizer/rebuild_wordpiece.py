"""The WordPiece tokenizer of a GGUF file, as a folder of a BERT model has it; see `wordpiece`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qformats.errors import CheckpointError
from qformats.vocabularies import added_token

from .vocabulary import TokenType, padding_token
from .wordpiece import BEGINS, GOES_ON

__all__ = ["content", "usual_roles"]

_LONGEST_WORD = 100
_USUAL = {"bos": 101, "unk": 100, "sep": 102, "pad": 0, "mask": 103}
"""What llama.cpp assumes where a file does not say it: the ids of the first BERT."""
_ROLES = ("unk", "sep", "pad", "cls", "mask")


def usual_roles(roles: Mapping[str, int], size: int) -> dict[str, int]:
    """Ids of the special tokens, with those that the loader assumes."""
    found = {role: index for role, index in _USUAL.items() if index < size} | dict(roles)
    return found | {"cls": roles.get("cls", found.get("bos", 0))}


def content(
    tokens: Sequence[str],
    types: Sequence[int],
    roles: Mapping[str, int],
    flags: Mapping[int, dict[str, bool]],
    file: str,
    *,
    lowercase: bool,
    strip_accents: bool | None,
    max_length: int | None,
) -> dict[str, Any]:
    """Build the JSON files of a tokenizer, by name.

    Parameters
    ----------
    tokens, types : sequence
        One entry per id.
    roles : mapping of str to int
        From `usual_roles`.
    flags : mapping
        Further flags of added tokens, by id.
    file : str
        The GGUF file, for messages.
    lowercase, strip_accents : bool
        What becomes of a text; accents go with upper case if nothing is said.
    max_length : int, optional
        The model's context length.

    Raises
    ------
    CheckpointError
        If a special token is missing, or two tokens are spelled alike in a folder.
    """
    special = {role: roles[role] for role in _ROLES if role in roles}
    missing = [role for role in ("unk", "sep", "cls") if role not in special]
    if missing:
        raise CheckpointError(file, f"no token for {missing[0]}", "the special tokens of BERT")
    as_they_are = set(special.values())
    vocab: dict[str, int] = {}
    for index, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind == TokenType.UNUSED and token.removeprefix(BEGINS) == padding_token(index):
            continue
        text = token if index in as_they_are else _spelled(token, kind)
        if vocab.setdefault(text, index) != index:
            raise CheckpointError(
                file, f"tokens {vocab[text]} and {index} are both {text!r}", "unique tokens"
            )
    texts = {index: text for text, index in vocab.items()}
    named = {f"{role}_token": texts[index] for role, index in special.items()}
    added = [
        added_token(index, text, special=types[index] != TokenType.USER_DEFINED) | flags.get(index, {})
        for index, text in sorted(texts.items())
        if index in as_they_are or types[index] in (TokenType.CONTROL, TokenType.USER_DEFINED)
    ]
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
        "clean_up_tokenization_spaces": True,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "do_lower_case": lowercase,
        "strip_accents": strip_accents,
    }
    if max_length is not None:
        settings["model_max_length"] = max_length
    return {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": {
                "type": "BertNormalizer",
                "clean_text": True,
                "handle_chinese_chars": True,
                "strip_accents": strip_accents,
                "lowercase": lowercase,
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": _around((named["cls_token"], roles["cls"]), (named["sep_token"], roles["sep"])),
            "decoder": {"type": "WordPiece", "prefix": GOES_ON, "cleanup": True},
            "model": {
                "type": "WordPiece",
                "unk_token": named["unk_token"],
                "continuing_subword_prefix": GOES_ON,
                "max_input_chars_per_word": _LONGEST_WORD,
                "vocab": vocab,
            },
        },
        "tokenizer_config.json": settings,
        "special_tokens_map.json": named,
    }


def _spelled(token: str, kind: int) -> str:
    """A token as it is in a folder."""
    if kind in (TokenType.CONTROL, TokenType.USER_DEFINED):
        return token
    if token.startswith(BEGINS):
        return token.removeprefix(BEGINS)
    # Older converters left these as they were.
    bracketed = token.startswith("[") and token.endswith("]") and len(token) > 2
    return token if bracketed else GOES_ON + token


def _around(cls: tuple[str, int], sep: tuple[str, int]) -> dict[str, Any]:
    """What is put around a text, and around two."""

    def special(token: tuple[str, int], kind: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": token[0], "type_id": kind}}

    first = [special(cls, 0), {"Sequence": {"id": "A", "type_id": 0}}, special(sep, 0)]
    second = [{"Sequence": {"id": "B", "type_id": 1}}, special(sep, 1)]
    tokens = {text: {"id": text, "ids": [index], "tokens": [text]} for text, index in (cls, sep)}
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": first + second,
        "special_tokens": tokens,
    }
