"""A model in a thread of its own that answers whoever asks, as many as it can at a time, in the order of asking."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

import torch

from qformats.chatting.alone import Alone
from qformats.chatting.answer import Answer, Piece, Request
from qformats.chatting.either import Either
from qformats.chatting.text import Vocabulary
from qformats.chatting.together import Together
from qformats.errors import BackendUnavailableError

__all__ = ["Busy", "Closed", "Engine"]

_LOG = logging.getLogger(__name__)
_ANSWERS = 64
_WAITING = 256
_CACHE = 4 << 30
_PREFIXES = 1 << 30


class Busy(BackendUnavailableError):
    """So many wait already that nobody else may."""


class Closed(BackendUnavailableError):
    """The model is about to be released."""


class Engine:
    """Answers requests for one model.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model; nothing else may use it meanwhile.
    tokenizer : transformers.PreTrainedTokenizerBase
        Its tokenizer.
    answers : int
        Answers in work at a time.
    waiting : int
        Requests in the queue at most.
    cache_bytes, prefix_bytes : int
        Keys and values of answers in work, and of texts that have ended, at most.
    captured : bool, optional
        Whether an answer that is alone is written by ``generate``, whose steps are captured on a GPU; by default there.

    Examples
    --------
    >>> import qformats
    >>> from qformats.chatting.answer import Request
    >>> from qformats.chatting.engine import Engine
    >>> from qformats.runtime import tokenizer
    >>> words = tokenizer(qformats.open("demo"))
    >>> with Engine(qformats.load_model("demo", device="cpu"), words) as engine:
    ...     pieces = list(engine.stream(Request(tuple(words("The United")["input_ids"]), most=2)))
    >>> "".join(piece.text for piece in pieces), pieces[-1].finish
    (' States has', 'length')
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        answers: int = _ANSWERS,
        waiting: int = _WAITING,
        cache_bytes: int = _CACHE,
        prefix_bytes: int = _PREFIXES,
        captured: bool | None = None,
    ) -> None:
        self.tokenizer, self.vocabulary = tokenizer, Vocabulary(tokenizer)
        self.batches = Together.suits(model)
        if captured is None:
            captured = model.device.type == "cuda"
        room = {"most": answers, "cache_bytes": cache_bytes, "prefix_bytes": prefix_bytes}
        self._steps: Together | Either | Alone
        if not self.batches:
            self._steps = Alone(model)
        elif captured:
            self._steps = Either(model, lambda: bool(self._waiting), **room)
        else:
            self._steps = Together(model, **room)
        self._limit = waiting
        self._changed = threading.Condition()
        self._waiting: deque[Answer] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="qformats-engine", daemon=True)
        self._thread.start()

    @property
    def active(self) -> int:
        """Answers in work."""
        return self._steps.count

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def cache_nbytes(self) -> int:
        """Bytes of keys and values."""
        return self._steps.nbytes

    def submit(self, request: Request, sink: Callable[[Piece], None]) -> Answer:
        """Ask for an answer.

        Parameters
        ----------
        request : Request
            What to answer.
        sink : callable
            Takes the pieces of the answer, in the model's thread; must not block. The last one says how it ended.

        Returns
        -------
        Answer
            Can be cancelled.

        Raises
        ------
        Busy
            If too many wait already.
        Closed
            If the engine was closed.
        """
        answer = Answer(request, self.tokenizer, self.vocabulary, sink)
        with self._changed:
            if self._closed:
                raise Closed("the model", "it is about to be released", "ask again later")
            if len(self._waiting) >= self._limit:
                raise Busy("the model", f"{self._limit} requests are waiting already", "ask again later")
            self._waiting.append(answer)
            self._changed.notify_all()
        return answer

    def stream(self, request: Request) -> Generator[Piece, None, None]:
        """Pieces of an answer as they come; who stops reading cancels it.

        Raises
        ------
        Busy, Closed
            See :meth:`submit`.
        """
        pieces: queue.SimpleQueue[Piece] = queue.SimpleQueue()
        answer = self.submit(request, pieces.put)
        try:
            while True:
                piece = pieces.get()
                yield piece
                if piece.finish:
                    return
        finally:
            answer.cancel()

    def close(self, grace: float = 0.0) -> None:
        """Take no more requests, end those that wait, and release the model.

        Parameters
        ----------
        grace : float
            Seconds that answers in work may take; then they end where they are.
        """
        with self._changed:
            self._closed = True
            waiting, self._waiting = list(self._waiting), deque()
            self._changed.notify_all()
        for answer in waiting:
            answer.fail(Closed("the model", "it is about to be released", "ask again later"))
        until = time.monotonic() + grace
        while self._thread.is_alive():
            self._thread.join(max(0.0, until - time.monotonic()))
            # An answer that was just being begun has to be told again.
            self._steps.cancel()
            until = time.monotonic() + 0.1
        # Whoever still knows the engine does not keep the model in memory.
        self._steps = Alone(None)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _run(self) -> None:
        with torch.no_grad():
            while self._next():
                try:
                    if self._steps.count:
                        self._steps.step()
                except Exception as error:
                    # Whatever a model raises ends the answers that it was working on, and nothing else.
                    _LOG.exception("a step of the model failed")
                    self._steps.fail(error)

    def _next(self) -> bool:
        """Wait for something to do; gives whether there is anything."""
        with self._changed:
            while not (self._waiting or self._steps.count or self._closed):
                self._changed.wait()
            gone = [answer for answer in self._waiting if answer.cancelled]
            self._waiting = deque(answer for answer in self._waiting if not answer.cancelled)
            begun = []
            while self._waiting and self._steps.has_room(self._waiting[0]):
                begun.append(self._waiting.popleft())
                self._steps.add(begun[-1])
        for answer in gone:
            answer.finish("cancelled")
        return self._steps.count > 0 or not self._closed
