"""One answer: what is asked for, and what becomes of it, token by token."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qformats.chatting.sampling import Choice, Sampling
from qformats.chatting.text import Detokenizer, Stops, Vocabulary

if TYPE_CHECKING:
    import torch

__all__ = ["Answer", "Piece", "Request", "Timings", "Token"]


@dataclass(frozen=True)
class Request:
    """What to answer, and how.

    Attributes
    ----------
    ids : tuple of int
        The prompt.
    most : int
        Tokens at most.
    sampling : Sampling
        How tokens are chosen.
    stops : tuple of str
        Texts that end the answer.
    ends : frozenset of int
        Tokens that end the answer.
    logprobs : int or None
        How many of the likeliest tokens to tell beside each; 0 for its own probability alone, ``None`` for no
        probabilities.
    """

    ids: tuple[int, ...]
    most: int
    sampling: Sampling = field(default_factory=Sampling)
    stops: tuple[str, ...] = ()
    ends: frozenset[int] = frozenset()
    logprobs: int | None = None


@dataclass(frozen=True)
class Token:
    r"""A token and the logarithm of its probability.

    Attributes
    ----------
    id : int
        In the vocabulary.
    text : str
        Bytes that are no character of their own are shown as ``\xNN``.
    bytes : bytes
        The token itself.
    logprob : float or None
        As the model gives it, whatever the options of the choice.
    top : tuple of Token
        The likeliest tokens in its place, the best first.
    """

    id: int
    text: str
    bytes: bytes
    logprob: float | None = None
    top: tuple[Token, ...] = ()


@dataclass(frozen=True)
class Timings:
    """How long an answer took.

    Attributes
    ----------
    prompt_tokens, cached_tokens, tokens : int
        Of the prompt; those of them that an earlier answer had left in the cache; and those of the answer.
    waited, prompt_seconds, seconds : float
        In the queue; reading the prompt; and from the first token to the last.
    """

    prompt_tokens: int
    cached_tokens: int
    tokens: int
    waited: float
    prompt_seconds: float
    seconds: float

    @property
    def prompt_per_second(self) -> float | None:
        """Tokens of the prompt that were read per second; ``None`` if none were."""
        read = self.prompt_tokens - self.cached_tokens
        return read / self.prompt_seconds if self.prompt_seconds > 0 and read > 0 else None

    @property
    def per_second(self) -> float | None:
        """Tokens per second after the first one; ``None`` if there is no second one."""
        return (self.tokens - 1) / self.seconds if self.tokens > 1 and self.seconds > 0 else None


@dataclass(frozen=True)
class Piece:
    """The next part of an answer.

    Attributes
    ----------
    text : str
        Whole characters; may be empty.
    tokens : tuple of Token
        Those that the text consists of, if probabilities were asked for.
    finish : str
        Empty unless this is the last piece: ``stop`` (an end token, or a stop text), ``length``, ``cancelled`` or
        ``error``.
    error : Exception or None
        What went wrong.
    timings : Timings or None
        With the last piece.
    """

    text: str = ""
    tokens: tuple[Token, ...] = ()
    finish: str = ""
    error: Exception | None = None
    timings: Timings | None = None


class Answer:
    """An answer while it is made.

    Parameters
    ----------
    request : Request
        What is asked for.
    tokenizer : transformers.PreTrainedTokenizerBase
        Of the model.
    vocabulary : Vocabulary
        Its single tokens.
    sink : callable
        Takes the pieces, in the thread that makes them; must not block.
    """

    def __init__(
        self, request: Request, tokenizer: Any, vocabulary: Vocabulary, sink: Callable[[Piece], None]
    ) -> None:
        self.request = request
        self.new: list[int] = []
        self.generator: Any = None
        self.cached = 0
        self.finished = False
        self.cancelled = False
        self._vocabulary, self._sink = vocabulary, sink
        self._detokenizer = Detokenizer(tokenizer, request.ids)
        self._stops = Stops(request.stops)
        self._pending: list[tuple[int, Token]] = []
        self._undecoded: list[Token] = []
        self._decoded = self._sent = 0
        self._asked = self._began = self._first = self._last = time.perf_counter()

    def cancel(self) -> None:
        """Have the answer end before its next token; from any thread."""
        self.cancelled = True

    @property
    def ids(self) -> list[int]:
        """Ids of the whole text so far."""
        return [*self.request.ids, *self.new]

    def draw_on(self, device: torch.device) -> None:
        """Have random numbers where scores are, if the choice needs any; those of the seed, if there is one."""
        import torch

        if self.request.sampling.greedy or self.generator is not None:
            return
        self.generator = torch.Generator(device)
        seed = self.request.sampling.seed
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)

    def begin(self) -> None:
        """Its prompt is read from now on."""
        self._began = self._first = self._last = time.perf_counter()

    def take(self, choice: Choice | None) -> None:
        """Take the next token; ``None`` if the model had no numbers to choose by."""
        self._last = time.perf_counter()
        if not self.new:
            self._first = self._last
        if choice is None:
            self.fail(ArithmeticError("the model gives scores that are not numbers"))
            return
        self.new.append(choice.id)
        if choice.id in self.request.ends:
            self.finish("stop")
            return
        if choice.logprob is not None:
            self._undecoded.append(self._token(choice))
        self._send(self._detokenizer.put([choice.id]))
        if self._stops.found:
            self.finish("stop")
        elif len(self.new) >= self.request.most:
            self.finish("length")

    def finish(self, why: str, error: Exception | None = None) -> None:
        """End the answer."""
        if self.finished:
            return
        self.finished = True
        text = ""
        if not self._stops.found:
            left = self._detokenizer.end()
            self._decode(left)
            text = self._stops.put(left) + self._stops.end()
            if self._stops.found:
                why = "stop" if why == "length" else why
        self._sink(Piece(text, self._released(text, last=not self._stops.found), why, error, self.timings))

    def fail(self, error: Exception) -> None:
        """End the answer with an error."""
        self.finish("error", error)

    @property
    def timings(self) -> Timings:
        """So far."""
        return Timings(
            len(self.request.ids),
            self.cached,
            len(self.new),
            self._began - self._asked,
            self._first - self._began,
            self._last - self._first,
        )

    def _send(self, new: str) -> None:
        self._decode(new)
        text = self._stops.put(new)
        tokens = self._released(text)
        if text or tokens:
            self._sink(Piece(text, tokens))

    def _decode(self, new: str) -> None:
        """Remember where in the text the tokens end whose text this is."""
        self._decoded += len(new)
        if new:
            self._pending += [(self._decoded, token) for token in self._undecoded]
            self._undecoded.clear()

    def _released(self, text: str, last: bool = False) -> tuple[Token, ...]:
        """Tokens whose whole text has been sent with `text`."""
        self._sent += len(text)
        if last:
            self._pending += [(self._decoded, token) for token in self._undecoded]
        count = sum(end <= self._sent for end, _ in self._pending)
        released, self._pending = self._pending[:count], self._pending[count:]
        return tuple(token for _, token in released)

    def _token(self, choice: Choice) -> Token:
        top = tuple(self._plain(id, logprob) for id, logprob in choice.top)
        return Token(
            choice.id,
            self._vocabulary.text(choice.id),
            self._vocabulary.bytes(choice.id),
            choice.logprob,
            top,
        )

    def _plain(self, id: int, logprob: float) -> Token:
        return Token(id, self._vocabulary.text(id), self._vocabulary.bytes(id), logprob)


def texts(answers: Sequence[Answer]) -> list[tuple[Sequence[int], Sequence[int]]]:
    """Ids of prompts and of what was generated after them."""
    return [(answer.request.ids, answer.new) for answer in answers]
