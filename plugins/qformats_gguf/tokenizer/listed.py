"""What a folder's lists say about the tokens of a tokenizer.model: which are markers, and which follow the pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qformats.errors import CheckpointError
from qformats.vocabularies import Piece

from .added import AddedToken, decoder_entries, json_entries, named_tokens
from .files import TokenizerFiles
from .vocabulary import TokenType

__all__ = ["listed_tokens"]

_HINT = "the files belong to different models: remove the one that is not this model's"
_OWN = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.BYTE)
"""Types that SentencePiece gives tokens which no text contains; lists repeat these tokens."""


def listed_tokens(files: TokenizerFiles, pieces: Sequence[Piece]) -> dict[int, AddedToken]:
    """Collect text and special flag of every token that a list gives a role, by id.

    A list may also rename a piece: fine-tunes give ``<unused0>`` the text of a chat marker.

    Parameters
    ----------
    files : TokenizerFiles
        The folder. ``added_tokens_decoder`` of tokenizer_config.json decides over tokenizer.json, as in
        llama.cpp's converter. added_tokens.json adds to these two; what contradicts them is ignored, as in
        Transformers. Tokens with a special role, and additional special tokens, are special.
    pieces : sequence of Piece
        The tokens of tokenizer.model.

    Raises
    ------
    CheckpointError
        If a list is malformed, or gives a token another id than another file.
    """
    model = {piece.text: index for index, piece in enumerate(pieces)}
    found: dict[int, AddedToken] = {}
    ids: dict[str, int] = {}

    def contradiction(index: int, text: str) -> str | None:
        known = ids.get(text, model.get(text, index))
        if known != index:
            return f"token {text!r} has id {index}, and id {known} in another file"
        if index in found and found[index].text != text:
            return f"id {index} is {text!r}, and {found[index].text!r} in another file"
        return None

    def add(index: int, text: str, special: bool, *, decides: bool) -> None:
        kind = pieces[index].type if index < len(pieces) and pieces[index].text == text else TokenType.NORMAL
        said = kind in _OWN or (kind == TokenType.USER_DEFINED and not special)
        if said and (not decides or kind == TokenType.BYTE):
            return
        found[index], ids[text] = AddedToken(text, special), index

    for file, entries in (
        ("tokenizer.json", json_entries(files)),
        ("tokenizer_config.json", decoder_entries(files)),
    ):
        for index, text, special in entries:
            if problem := contradiction(index, text):
                raise CheckpointError(files.path(file), problem, "one id per token", hint=_HINT)
            add(index, text, special, decides=file == "tokenizer_config.json")
    believed = not found
    for text, index in (files.json("added_tokens.json") or {}).items():
        files.check_id("added_tokens.json", text, index)
        problem = contradiction(index, text)
        if problem and believed:
            raise CheckpointError(files.path("added_tokens.json"), problem, "one id per token", hint=_HINT)
        if not problem and index not in found:
            add(index, text, False, decides=False)
    for text in named_tokens(files):
        named = ids.get(text, model.get(text))
        if named is not None and (named not in found or found[named].text == text):
            add(named, text, True, decides=named in found)
    _compare_vocabularies(files, model, found)
    return found


def _compare_vocabularies(
    files: TokenizerFiles, model: Mapping[str, int], listed: Mapping[int, AddedToken]
) -> None:
    """Refuse a tokenizer.json whose own tokens have other ids than in tokenizer.model, or are not in it."""
    section = (files.json("tokenizer.json") or {}).get("model")
    vocabulary = section.get("vocab") if isinstance(section, Mapping) else None
    if not isinstance(vocabulary, Mapping):
        return
    for text, index in vocabulary.items():
        files.check_id("tokenizer.json", text, index)
        if model.get(text, index) != index:
            problem = f"token {text!r} has id {index}, and id {model[text]} in tokenizer.model"
            raise CheckpointError(files.path("tokenizer.json"), problem, "one id per token", hint=_HINT)
        if index >= len(model) and index not in listed:
            problem = f"lacks the token {text!r} of tokenizer.json (id {index})"
            hint = "without tokenizer.model, tokenizer.json alone is used"
            raise CheckpointError(
                files.path("tokenizer.model"), problem, "the same tokens in both", hint=hint
            )
