"""Tokens as text while they arrive: whole characters only, and nothing of what ends it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any

__all__ = ["Detokenizer", "Stops", "Vocabulary"]

_CONTEXT = 4
"""Ids before a new one that its text may depend on: a space in front, half a character."""
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""What stands for a space in SentencePiece's tokens."""


class Detokenizer:
    """Turns ids into text as they arrive; half a character waits for the id that completes it.

    Parameters
    ----------
    tokenizer : object
        With ``decode``.
    prompt : sequence of int
        Ids before the first new one, which are not part of the text.

    Examples
    --------
    >>> class Bytes:
    ...     def decode(self, ids, **options):
    ...         return bytes(ids).decode("utf-8", "replace")
    >>> text = Detokenizer(Bytes(), b"a ")
    >>> [text.put([byte]) for byte in "é!".encode()], text.end()
    (['', 'é', '!'], '')
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int]) -> None:
        self._decode: Callable[[Sequence[int]], str] = lambda ids: str(
            tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )
        self._ids = list(prompt)[-_CONTEXT:]
        self._told = self._decode(self._ids)

    def put(self, ids: Sequence[int]) -> str:
        """Take ids; gives the text that is complete now."""
        self._ids += ids
        text = self._decode(self._ids)
        # Half a character decodes to a placeholder: its text comes with the id that completes it.
        return "" if text.endswith(_UNFINISHED) else self._new(text)

    def end(self) -> str:
        """Text that is left, complete or not."""
        text = self._decode(self._ids)
        return self._new(text) if len(text) > len(self._told) else ""

    def _new(self, text: str) -> str:
        new = text[len(self._told) :]
        self._ids = self._ids[-_CONTEXT:]
        self._told = self._decode(self._ids)
        return new


class Stops:
    """Finds texts that end an answer, also where they span several pieces.

    What may be the beginning of one of them is held back until it is known.

    Parameters
    ----------
    texts : sequence of str
        Any of them ends the answer, and is not part of it.

    Examples
    --------
    >>> stops = Stops(["END"])
    >>> stops.put("one E"), stops.put("ND two"), stops.found
    ('one ', '', True)
    >>> stops = Stops(["END"])
    >>> stops.put("one E"), stops.put("lse"), stops.found, stops.end()
    ('one ', 'Else', False, '')
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = [text for text in texts if text]
        self._held = ""
        self.found = False

    def put(self, text: str) -> str:
        """Take a piece of text; gives what is certainly part of the answer."""
        self._held += text
        places = [place for each in self._texts if (place := self._held.find(each)) >= 0]
        if places:
            self.found = True
            told, self._held = self._held[: min(places)], ""
            return told
        keep = max((self._begun(each) for each in self._texts), default=0)
        cut = len(self._held) - keep
        told, self._held = self._held[:cut], self._held[cut:]
        return told

    def end(self) -> str:
        """Text that was held back for nothing."""
        told, self._held = self._held, ""
        return told

    def _begun(self, text: str) -> int:
        """How much of `text` what is held ends with."""
        longest = min(len(text) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(text[:n])), 0)


class Vocabulary:
    """Single tokens of a tokenizer as text and bytes.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        Of the model.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def bytes(self, id: int) -> bytes:
        """Bytes of a token, which may be half a character."""
        token = self._tokenizer.convert_ids_to_tokens(id)
        if token is None:
            return b""
        token = token.decode("latin-1") if isinstance(token, bytes) else str(token)
        if id in self._special:
            return token.encode()
        if "ByteLevel" in self._decoders and set(token) <= _byte_of().keys():
            return bytes(_byte_of()[c] for c in token)
        if found := _BYTE.fullmatch(token):
            return bytes([int(found[1], 16)])
        if self._decoders & {"Metaspace", "Replace"} or _SPACE in token:
            return token.replace(_SPACE, " ").encode()
        return str(self._tokenizer.decode([id], clean_up_tokenization_spaces=False)).encode()

    def text(self, id: int) -> str:
        r"""Text of a token; bytes that are no character of their own are shown as ``\xNN``."""
        return self.bytes(id).decode("utf-8", "backslashreplace")

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(getattr(self._tokenizer, "added_tokens_decoder", {}))

    @cached_property
    def _decoders(self) -> set[str]:
        """Types of the decoders of a fast tokenizer."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        decoder = json.loads(backend.to_str())["decoder"] if backend is not None else None
        if decoder is None:
            return set()
        return {each["type"] for each in (decoder, *decoder.get("decoders", ()))}


@lru_cache(maxsize=1)
def _byte_of() -> dict[str, int]:
    """GPT-2's printable stand-ins of bytes: those that print as they are, the others from 256 on."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + n): byte for n, byte in enumerate(others)}
