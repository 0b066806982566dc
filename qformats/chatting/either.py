"""Answers of a model on a GPU: one that is alone by ``generate``, whose steps are captured there; several together.

Whoever comes second has the text of the first read again: that takes less than a few steps of the
model's own code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qformats.chatting.alone import Alone
from qformats.chatting.answer import Answer
from qformats.chatting.together import Together

__all__ = ["Either"]


class Either:
    """Answers of a model, alone or together.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model.
    others : callable
        Whether somebody waits who could be answered too.
    most, cache_bytes, prefix_bytes : int
        As for :class:`Together`.
    """

    def __init__(
        self, model: Any, others: Callable[[], bool], *, most: int, cache_bytes: int, prefix_bytes: int
    ) -> None:
        crowd = most > 1
        self._alone = Alone(model, (lambda: crowd and others()))
        self._together = Together(model, most=most, cache_bytes=cache_bytes, prefix_bytes=prefix_bytes)

    @property
    def count(self) -> int:
        """Answers in work."""
        return self._alone.count + self._together.count

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values that are kept beside those of a captured step."""
        return self._together.nbytes

    def has_room(self, answer: Answer) -> bool:
        """Whether another answer can be begun now."""
        return not self.count or (not self._alone.count and self._together.has_room(answer))

    def add(self, answer: Answer) -> None:
        """Begin an answer."""
        if self.count:
            self._together.add(answer)
        else:
            self._alone.add(answer)

    def step(self) -> None:
        """Write the whole answer of whoever is alone, or a token of everyone's."""
        if not self._alone.count:
            self._together.step()
            return
        self._alone.step()
        left = self._alone.left()
        if left is not None:
            self._together.add(left)

    def fail(self, error: Exception) -> None:
        """End all answers with an error."""
        self._alone.fail(error)
        self._together.fail(error)

    def cancel(self) -> None:
        """Have all answers end before their next tokens."""
        self._alone.cancel()
        self._together.cancel()
