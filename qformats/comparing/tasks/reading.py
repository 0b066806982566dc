"""How a model reads the texts of tasks: as its plugin says, or from left to right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from qformats.comparing.text import Tokenizer
from qformats.interfaces import Checkpoint, Evaluation, Scored
from qformats.registry import registry

__all__ = ["Causal", "Reader", "evaluation_of"]


class Reader(Protocol):
    """What turns a window into what a model reads."""

    @property
    def name(self) -> str:
        """What to call it in a report."""

    @property
    def summary(self) -> str:
        """What it does, as a clause."""

    def window(self, before: Sequence[int], scored: Sequence[int]) -> Scored:
        """See :meth:`qformats.interfaces.Evaluation.window`."""


class Causal:
    """From left to right, behind what stands before every text.

    Parameters
    ----------
    beginning : sequence of int
        Ids that stand before every text; none if the tokenizer adds none. Then the first token of a text is not scored,
        since nothing predicts it.

    Examples
    --------
    >>> from qformats.comparing.tasks.reading import Causal
    >>> Causal([1]).window([], [11, 12, 13])
    Scored(ids=(1, 11, 12), targets=(11, 12, 13))
    >>> Causal([]).window([], [11, 12, 13])
    Scored(ids=(11, 12), targets=(12, 13))
    """

    name = "left to right"
    summary = "causal windows; a last word is found if each of its tokens is the most probable one"

    def __init__(self, beginning: Sequence[int]) -> None:
        self.beginning = tuple(beginning)

    def window(self, before: Sequence[int], scored: Sequence[int]) -> Scored:
        """All of a window but its last token, which nothing follows."""
        whole = (*self.beginning, *before, *scored)
        first = len(whole) - len(scored)
        return Scored(whole[:-1], whole[max(1, first) :])


def evaluation_of(model: Checkpoint, tokenizer: Tokenizer) -> Evaluation | Causal:
    """How a model reads: as its class in a plugin says, or from left to right."""
    own = registry().model_for(model.config)
    found = None if own is None else own.evaluation(model.config)
    return Causal(tokenizer.beginning) if found is None else found
