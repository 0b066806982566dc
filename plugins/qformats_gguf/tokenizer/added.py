"""Added tokens, which are found in the raw text before anything else, wherever a folder lists them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from qformats.errors import CheckpointError

from .files import TokenizerFiles

__all__ = [
    "ROLES",
    "AddedToken",
    "added_tokens",
    "decoder_entries",
    "json_entries",
    "looks_special",
    "named_tokens",
    "token_text",
]

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
"""Special roles in llama.cpp's order; a folder names them ``bos_token`` and so on."""


class AddedToken(NamedTuple):
    """One added token.

    Attributes
    ----------
    text : str
        Its text, as it appears in input.
    special : bool
        True for control tokens.
    """

    text: str
    special: bool


def looks_special(text: str) -> bool:
    """Whether llama.cpp's converter takes a token for a control token by its text."""
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<\uff5c") and text.endswith("\uff5c>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def token_text(value: Any) -> str | None:
    """Return the text of a token given as a string or as an object with ``content``."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def added_tokens(files: TokenizerFiles, vocabulary: Mapping[str, int]) -> dict[int, AddedToken]:
    """Collect the added tokens of a folder, by id.

    tokenizer.json comes first, then ``added_tokens_decoder`` of tokenizer_config.json, then
    added_tokens.json. Tokens with a special role are special even where a list says otherwise, as in
    Transformers.

    Parameters
    ----------
    files : TokenizerFiles
        The folder.
    vocabulary : mapping of str to int
        The model's own tokens.

    Raises
    ------
    CheckpointError
        If a list is malformed or contradicts the vocabulary.
    """
    found: dict[int, AddedToken] = {}
    ids: dict[str, int] = {}

    def add(file: str, index: int, text: str, special: bool, *, first: bool) -> None:
        files.check_id(file, text, index)
        known = vocabulary.get(text, ids.get(text, index))
        if known != index:
            # A later file does not change a token that is already known.
            if first:
                raise CheckpointError(
                    files.path(file),
                    f"added token {text!r} has id {index} and id {known}",
                    "one id per token",
                )
            return
        if index in found:
            if first:
                raise CheckpointError(
                    files.path(file),
                    f"added tokens {found[index].text!r} and {text!r} both have id {index}",
                    "unique ids",
                )
            return
        found[index] = AddedToken(text, special)
        ids[text] = index

    for index, text, special in json_entries(files):
        add("tokenizer.json", index, text, special, first=True)
    for index, text, special in decoder_entries(files):
        add("tokenizer_config.json", index, text, special, first=False)
    named = named_tokens(files)
    for text, index in (files.json("added_tokens.json") or {}).items():
        add("added_tokens.json", index, text, text in named, first=False)
    for text in named:
        named_id = ids.get(text, vocabulary.get(text))
        if named_id is not None:
            found[named_id] = AddedToken(text, special=True)
    return found


def json_entries(files: TokenizerFiles) -> list[tuple[int, str, bool]]:
    """Read ids, texts and special flags of ``added_tokens`` in tokenizer.json.

    Raises
    ------
    CheckpointError
        If they are malformed.
    """
    name = "tokenizer.json"
    listed = (files.json(name) or {}).get("added_tokens") or []
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise CheckpointError(files.path(name), "malformed added_tokens", "a list of objects")
    entries = []
    for entry in listed:
        index, text = entry.get("id"), entry.get("content")
        if not isinstance(text, str):
            raise CheckpointError(files.path(name), f"added token {index!r} has content {text!r}", "a string")
        entries.append((files.check_id(name, text, index), text, bool(entry.get("special"))))
    return entries


def decoder_entries(files: TokenizerFiles) -> list[tuple[int, str, bool]]:
    """Read ids, texts and special flags of ``added_tokens_decoder`` in tokenizer_config.json.

    Raises
    ------
    CheckpointError
        If it is malformed.
    """
    decoder = (files.json("tokenizer_config.json") or {}).get("added_tokens_decoder") or {}
    path = files.path("tokenizer_config.json")
    if not isinstance(decoder, dict):
        raise CheckpointError(path, "malformed added_tokens_decoder", "an object of objects")
    entries = []
    for key, entry in decoder.items():
        text = token_text(entry)
        if text is None or not key.isascii() or not key.isdigit() or len(key) > 9:
            raise CheckpointError(
                path, f"malformed entry {key!r} of added_tokens_decoder", "an id and its content"
            )
        special = isinstance(entry, Mapping) and bool(entry.get("special"))
        entries.append((files.check_id("tokenizer_config.json", text, int(key)), text, special))
    return entries


def named_tokens(files: TokenizerFiles) -> dict[str, None]:
    """Texts with a special role, also a model's own such as ``image_token``, and additional special tokens."""
    settings = files.settings()
    values = [value for key, value in settings.items() if key.endswith("_token")]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = settings.get(key)
        values.extend(more.values() if isinstance(more, dict) else more if isinstance(more, list) else [])
    return {text: None for value in values if (text := token_text(value)) is not None}
