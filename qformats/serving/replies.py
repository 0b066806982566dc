"""What clients get, in the terms of OpenAI's API: whole answers, and the chunks of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from qformats.chatting.answer import Piece, Timings, Token

__all__ = ["ChatReply", "CompletionReply", "Reply", "speeds", "usage"]


def usage(timings: Sequence[Timings], prompts: int) -> dict[str, Any]:
    """Numbers of tokens of several answers; those of `prompts` prompts count once each."""
    each = len(timings) // prompts
    first = timings[::each] if each else timings
    read = sum(one.prompt_tokens for one in first)
    written = sum(one.tokens for one in timings)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": sum(one.cached_tokens for one in first)},
    }


def speeds(timings: Timings) -> dict[str, Any]:
    """Times of one answer, as llama.cpp's server tells them."""
    return {
        "prompt_n": timings.prompt_tokens,
        "cache_n": timings.cached_tokens,
        "prompt_ms": 1000 * timings.prompt_seconds,
        "prompt_per_second": timings.prompt_per_second,
        "predicted_n": timings.tokens,
        "predicted_ms": 1000 * timings.seconds,
        "predicted_per_second": timings.per_second,
        "queue_ms": 1000 * timings.waited,
    }


class Reply:
    """Makes the JSON of one reply.

    Parameters
    ----------
    model : str
        Its name.
    """

    kind = ""
    chunk_kind = ""
    prefix = ""

    def __init__(self, model: str) -> None:
        self._head = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, choices: Sequence[Sequence[Piece]], numbers: dict[str, Any]) -> dict[str, Any]:
        """All answers at once."""
        found = [self.choice(index, pieces) for index, pieces in enumerate(choices)]
        return {**self._head, "object": self.kind, "choices": found, "usage": numbers, **_one_speed(choices)}

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """A part of a stream."""
        return {**self._head, "object": self.chunk_kind, "choices": choices, **more}

    def choice(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        """One of the answers, whole."""
        raise NotImplementedError

    def opening(self, index: int) -> dict[str, Any] | None:
        """What comes before the first piece of an answer in a stream."""
        return None

    def part(self, index: int, piece: Piece) -> dict[str, Any]:
        """One piece of an answer in a stream."""
        raise NotImplementedError


def _one_speed(choices: Sequence[Sequence[Piece]]) -> dict[str, Any]:
    last = choices[0][-1].timings if len(choices) == 1 else None
    return {"timings": speeds(last)} if last is not None else {}


def _tokens(pieces: Iterable[Piece]) -> list[Token]:
    return [token for piece in pieces for token in piece.tokens]


class ChatReply(Reply):
    """Replies of ``/v1/chat/completions``."""

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def choice(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        """One of the answers, whole."""
        text = "".join(piece.text for piece in pieces)
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": self._logprobs(_tokens(pieces)),
            "finish_reason": pieces[-1].finish,
        }

    def opening(self, index: int) -> dict[str, Any]:
        """Whose words follow."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def part(self, index: int, piece: Piece) -> dict[str, Any]:
        """One piece of an answer in a stream."""
        return {
            "index": index,
            "delta": {"content": piece.text} if piece.text or not piece.finish else {},
            "logprobs": self._logprobs(piece.tokens),
            "finish_reason": piece.finish or None,
        }

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not tokens:
            return None
        content = [{**_told(each), "top_logprobs": [_told(other) for other in each.top]} for each in tokens]
        return {"content": content, "refusal": None}


def _told(token: Token) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.bytes), "id": token.id}


class CompletionReply(Reply):
    """Replies of ``/v1/completions``.

    Parameters
    ----------
    model : str
        Its name.
    before : sequence of str
        Texts that the answers begin with, where the prompt is repeated.
    """

    kind, chunk_kind, prefix = "text_completion", "text_completion", "cmpl"

    def __init__(self, model: str, before: Sequence[str] = ()) -> None:
        super().__init__(model)
        self._before = before
        self._offsets: dict[int, int] = {}

    def choice(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        """One of the answers, whole."""
        text = (self._before[index] if self._before else "") + "".join(piece.text for piece in pieces)
        return self._choice(index, text, _tokens(pieces), pieces[-1].finish)

    def opening(self, index: int) -> dict[str, Any] | None:
        """The prompt, where it is repeated."""
        return self._choice(index, self._before[index], [], None) if self._before else None

    def part(self, index: int, piece: Piece) -> dict[str, Any]:
        """One piece of an answer in a stream."""
        return self._choice(index, piece.text, piece.tokens, piece.finish or None)

    def _choice(self, index: int, text: str, tokens: Sequence[Token], finish: str | None) -> dict[str, Any]:
        logprobs = self._logprobs(index, tokens) if tokens else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, index: int, tokens: Sequence[Token]) -> dict[str, Any]:
        offsets = []
        for token in tokens:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(token.text)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{other.text: other.logprob for other in token.top} for token in tokens],
            "text_offset": offsets,
        }
