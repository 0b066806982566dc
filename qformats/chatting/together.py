"""Many answers at a time: each step reads a part of one prompt, and adds a token to every answer that is being written.

A prompt is read by itself, in parts, so that answers that are already being written go on meanwhile; those are computed
together, a token of each at a time, and texts join and leave between two steps.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from qformats.chatting.answer import Answer, texts
from qformats.chatting.cache import gathered, growing, keeps_everything, nbytes, taken
from qformats.chatting.prefixes import Prefixes
from qformats.chatting.sampling import choose

__all__ = ["Together"]

_PART = 512
"""Tokens of a prompt that are read at a time."""


@dataclass
class _Reading:
    """A prompt, or a text that was begun elsewhere, that is being read."""

    answer: Answer
    ids: list[int]
    cache: DynamicCache
    read: int


@dataclass
class _Row:
    """An answer that is being written: so many of its tokens are in the cache."""

    answer: Answer
    tokens: int


class Together:
    """Answers of a model whose cache holds keys and values of tokens only.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model.
    most : int
        Answers at a time.
    cache_bytes : int
        Keys and values of all answers together, at most; a single answer may take more.
    prefix_bytes : int
        Keys and values of texts that have ended, at most.
    """

    def __init__(self, model: Any, *, most: int, cache_bytes: int, prefix_bytes: int) -> None:
        self._model, self._most, self._limit = model, most, cache_bytes
        self._layers = keeps_everything(model)
        self._takes = frozenset(inspect.signature(model.forward).parameters)
        self._reading: deque[_Reading] = deque()
        self._rows: list[_Row] = []
        self._cache: DynamicCache | None = None
        self._prefixes = Prefixes(prefix_bytes)
        self._per_token = 0

    @staticmethod
    def suits(model: Any) -> bool:
        """Whether texts of this model can be put side by side."""
        own = type(model).__module__.startswith("transformers.")
        takes = inspect.signature(model.forward).parameters
        return (
            own and "attention_mask" in takes and "past_key_values" in takes and keeps_everything(model) > 0
        )

    @property
    def count(self) -> int:
        """Answers in work."""
        return len(self._reading) + len(self._rows)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, of answers in work and of texts that have ended."""
        caches = [each.cache for each in self._reading] + ([self._cache] if self._cache else [])
        return self._prefixes.nbytes + sum(map(nbytes, caches))

    def has_room(self, answer: Answer) -> bool:
        """Whether another answer can be begun now."""
        if not self.count:
            return True
        if not self._per_token:
            # The first answer tells how much a token takes.
            return False
        everyone = [*(each.answer for each in self._reading), *(row.answer for row in self._rows), answer]
        longest = max(len(each.request.ids) + each.request.most for each in everyone)
        return self.count < self._most and len(everyone) * longest * self._per_token <= self._limit

    def add(self, answer: Answer) -> None:
        """Begin an answer."""
        answer.draw_on(self._model.device)
        ids = answer.ids
        if not answer.new:
            answer.begin()
        count, held = self._prefixes.find(ids)
        if not answer.new:
            answer.cached = count
        cache = growing(self._layers) if held is None else gathered([(held, 0, count)])
        self._reading.append(_Reading(answer, ids, cache, count))

    def step(self) -> None:
        """Read a part of a prompt, and write a token of every answer."""
        self._leave()
        if self._reading:
            self._read()
        if self._rows:
            self._write()
            self._leave()

    def fail(self, error: Exception) -> None:
        """End all answers with an error."""
        for answer in [*(each.answer for each in self._reading), *(row.answer for row in self._rows)]:
            answer.fail(error)
        self._reading.clear()
        self._rows, self._cache = [], None
        self._prefixes.clear()

    def cancel(self) -> None:
        """Have all answers end before their next tokens."""
        for answer in [*(each.answer for each in self._reading), *(row.answer for row in self._rows)]:
            answer.cancel()

    def _read(self) -> None:
        """Read a part of the next prompt; with the last part comes the first token of its answer."""
        reading = self._reading.popleft()
        answer = reading.answer
        if answer.cancelled:
            answer.finish("cancelled")
            return
        ids = reading.ids
        until = min(len(ids), reading.read + _PART)
        try:
            logits = self._logits([ids[reading.read : until]], reading.cache, [reading.read])
        except Exception:
            # Whoever handles it ends all answers in work.
            self._reading.append(reading)
            raise
        reading.read = until
        if until < len(ids):
            # Others have their turn before the next part.
            self._reading.append(reading)
            return
        self._choose([answer], logits)
        row = _Row(answer, until)
        self._per_token = self._per_token or nbytes(reading.cache) // until
        if answer.finished:
            self._keep(row, reading.cache, 0)
            return
        if self._cache is None:
            self._cache = reading.cache
        else:
            rows = [(self._cache, number, each.tokens) for number, each in enumerate(self._rows)]
            self._cache = gathered([*rows, (reading.cache, 0, until)])
        self._rows.append(row)

    def _write(self) -> None:
        """Write a token of every answer."""
        assert self._cache is not None
        answers = [row.answer for row in self._rows]
        lengths = [row.tokens for row in self._rows]
        logits = self._logits([answer.new[-1:] for answer in answers], self._cache, lengths)
        for row in self._rows:
            row.tokens += 1
        self._choose(answers, logits)

    def _leave(self) -> None:
        """Take out answers that have ended."""
        for row in self._rows:
            if row.answer.cancelled:
                row.answer.finish("cancelled")
        if not any(row.answer.finished for row in self._rows):
            return
        assert self._cache is not None
        staying = []
        for number, row in enumerate(self._rows):
            if row.answer.finished:
                self._keep(row, self._cache, number)
            else:
                staying.append((self._cache, number, row.tokens))
        self._rows = [row for row in self._rows if not row.answer.finished]
        self._cache = gathered(staying) if staying else None

    def _keep(self, row: _Row, cache: DynamicCache, number: int) -> None:
        answer = row.answer
        self._prefixes.keep(answer.ids[: row.tokens], taken(cache, number, row.tokens))

    def _choose(self, answers: Sequence[Answer], logits: Tensor) -> None:
        requests = [answer.request for answer in answers]
        chosen = choose(
            logits,
            [request.sampling for request in requests],
            [answer.generator for answer in answers],
            texts(answers),
            [request.logprobs for request in requests],
        )
        for answer, choice in zip(answers, chosen, strict=True):
            answer.take(choice)

    def _logits(self, ids: Sequence[Sequence[int]], cache: DynamicCache, lengths: Sequence[int]) -> Tensor:
        """Scores of the next tokens, ``(texts, vocabulary)``.

        Parameters
        ----------
        ids : sequence of sequence of int
            New tokens of each text, equally many.
        cache : DynamicCache
            What they follow.
        lengths : sequence of int
            How many tokens of each text it holds.
        """
        device = self._model.device
        new = torch.tensor([list(each) for each in ids], device=device)
        held = torch.tensor(lengths, device=device)[:, None]
        longest, count = max(lengths), new.shape[1]
        more: dict[str, Any] = {}
        if min(lengths) < longest:
            columns = torch.arange(longest + count, device=device)[None]
            more["attention_mask"] = (columns >= longest - held).long()
        if "position_ids" in self._takes:
            more["position_ids"] = held + torch.arange(count, device=device)[None]
        if "logits_to_keep" in self._takes:
            more["logits_to_keep"] = 1
        output = self._model(input_ids=new, past_key_values=cache, use_cache=True, **more)
        scores: Tensor = output.logits[:, -1]
        return scores
