"""What a comparison's tasks found: plain data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from qformats.comparing.estimate import Estimate

__all__ = ["MOST_NATS", "Finding", "TaskChange", "TaskResult", "TaskUsed"]


MOST_NATS = 20.0
"""Loss per word whose perplexity is still told, as in GLM-130B's evaluation."""


class Finding(StrEnum):
    """What a task proves about a model, with 95 % confidence."""

    BETTER = "better"
    WORSE = "worse"
    NO_DIFFERENCE = "no difference shown"
    TOO_LITTLE = "too little text"


@dataclass(frozen=True)
class TaskUsed:
    """A task of the comparison.

    Attributes
    ----------
    name, title : str
        What users and people call it.
    measure : str
        ``"perplexity"`` (per word; lower is better) or ``"accuracy"`` (of last words, 0 to 1; higher is better).
    source : str
        File that the text came from.
    characters : int
        Length of the text.
    words : int
        Words of the text, between single spaces; 0 where last words are asked for.
    passages : int
        Passages whose last word is asked for; 0 for a perplexity.
    window, step : int
        Tokens of a window, and by how many the next one begins later; 0 where last words are asked for.
    shortened : bool
        Whether only the beginning of the text was used.
    """

    name: str
    title: str
    measure: str
    source: str
    characters: int
    words: int
    passages: int
    window: int
    step: int
    shortened: bool


@dataclass(frozen=True)
class TaskChange:
    """A model's result against the base's on the same text.

    Attributes
    ----------
    difference : Estimate
        The model's value minus the base's.
    log_ratio : Estimate or None
        Logarithm of the ratio of perplexities, nats per word; ``None`` for an accuracy.
    lost, gained : int
        Passages that only the base, and only the model, gets right; 0 for a perplexity.
    finding : Finding
        Of a perplexity: whether Student's 95 % interval of the log ratio, over stretches of the text as long as a step,
        leaves out 0. Of an accuracy: whether as uneven a pair of `lost` and `gained` comes by chance less than once in
        20 times (the sign test, also called McNemar's exact test).
    """

    difference: Estimate
    log_ratio: Estimate | None
    lost: int
    gained: int
    finding: Finding


@dataclass(frozen=True)
class TaskResult:
    """A model's result in a task.

    Attributes
    ----------
    reading : str
        How the model read the text: ``"left to right"``, or what its plugin calls it.
    how : str
        The same in more words.
    value : Estimate
        Perplexity per word, at most ``exp(20)``; or the share of last words, 0 to 1.
    nats_per_word : float
        Loss behind a perplexity, which has no upper bound; 0 for an accuracy.
    tokens : int
        Tokens of the text that were scored; 0 for last words that are searched for.
    windows : int
        Windows, or passages.
    against : TaskChange or None
        Against the base; ``None`` for the base itself, and for a model that reads other tokens or in another way.
    """

    reading: str
    how: str
    value: Estimate
    nats_per_word: float
    tokens: int
    windows: int
    against: TaskChange | None

    @property
    def capped(self) -> bool:
        """Whether a perplexity is larger than what is told."""
        return self.nats_per_word > MOST_NATS
