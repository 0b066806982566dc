"""The tokenizer files of a Hugging Face folder, read without trusting them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qformats.errors import CheckpointError
from qformats.work.files import json_kind, parse_json

__all__ = ["MAX_TOKENS", "TokenizerFiles"]

MAX_TOKENS = 1 << 24
"""More tokens than any tokenizer has: a larger id means damage, not a vocabulary."""

_SECTIONS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
"""What tokenizer.json holds beside the model: an object each, or nothing."""


class TokenizerFiles:
    """Tokenizer files by name, parsed on demand.

    Parameters
    ----------
    files : mapping of str to bytes
        Contents by file name inside the folder.
    source : str
        The folder's name, for messages.
    """

    def __init__(self, files: Mapping[str, bytes], source: str = "") -> None:
        self._files, self.source = files, source or "model folder"
        self._parsed: dict[str, dict[str, Any] | None] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def path(self, name: str) -> str:
        """Return the name of a file for messages."""
        return f"{self.source}/{name}"

    @property
    def contents(self) -> Mapping[str, bytes]:
        """Every file by its name inside the folder."""
        return self._files

    def bytes(self, name: str) -> bytes:
        """Return the content of a file."""
        return bytes(self._files[name])

    def text(self, name: str) -> str | None:
        """Return the UTF-8 content of a file, None if it is absent.

        Raises
        ------
        CheckpointError
            If it is not UTF-8.
        """
        if name not in self._files:
            return None
        try:
            return bytes(self._files[name]).decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(
                self.path(name), f"byte {error.start} is not UTF-8", "UTF-8 text"
            ) from error

    def json(self, name: str) -> dict[str, Any] | None:
        """Return the object in a JSON file, None if the file is absent.

        Raises
        ------
        CheckpointError
            If the file is no JSON object.
        """
        if name not in self._parsed:
            self._parsed[name] = self._parse(name)
        return self._parsed[name]

    def _parse(self, name: str) -> dict[str, Any] | None:
        text = self.text(name)
        if text is None:
            return None
        try:
            value = parse_json(text)
        except ValueError as error:
            raise CheckpointError(self.path(name), f"not readable as JSON ({error})") from error
        if not isinstance(value, dict):
            raise CheckpointError(self.path(name), f"a JSON {json_kind(value)}", "a JSON object")
        for section in _SECTIONS if name == "tokenizer.json" else ():
            if not isinstance(value.get(section), dict | None):
                found = f"{section} is a JSON {json_kind(value[section])}"
                raise CheckpointError(self.path(name), found, "an object or null")
        return value

    def settings(self) -> dict[str, Any]:
        """Merge special_tokens_map.json and tokenizer_config.json; empty if neither exists.

        The map decides, as in Transformers, unless the other file is a newer one: with ``added_tokens_decoder``.
        """
        config, names = self.json("tokenizer_config.json") or {}, self.json("special_tokens_map.json") or {}
        return {**names, **config} if "added_tokens_decoder" in config else {**config, **names}

    def vocabulary(self, name: str, value: Any) -> dict[str, int]:
        """Check a mapping of tokens to ids.

        Raises
        ------
        CheckpointError
            If it is not such a mapping, an id is impossible, or two tokens share an id.
        """
        if not isinstance(value, dict):
            raise CheckpointError(
                self.path(name), f"a vocabulary of type {json_kind(value)}", "a JSON object"
            )
        for token, index in value.items():
            self.check_id(name, token, index)
        if len(set(value.values())) != len(value):
            seen: dict[int, str] = {}
            for token, index in value.items():
                if index in seen:
                    raise CheckpointError(
                        self.path(name),
                        f"tokens {seen[index]!r} and {token!r} both have id {index}",
                        "unique ids",
                    )
                seen[index] = token
        return value

    def check_id(self, name: str, token: str, index: Any) -> int:
        """Check the id of a token and return it.

        Raises
        ------
        CheckpointError
            If it is not an integer, negative or absurdly large.
        """
        if not isinstance(index, int) or isinstance(index, bool):
            raise CheckpointError(self.path(name), f"token {token!r} has id {index!r}", "an integer")
        if not 0 <= index < MAX_TOKENS:
            raise CheckpointError(
                self.path(name), f"token {token!r} has id {index}", f"0 to {MAX_TOKENS - 1}"
            )
        return index
