"""Perplexity of a whole text, per word, in windows that overlap.

The definition is that of GLM-130B's report. A window holds at most ``W - 1`` tokens of the text, and begins ``S``
tokens after the one before it. All of the first window is scored; of the others the last ``S`` tokens, or fewer at the
end of the text. Losses of all tokens are added up and divided by the number of *words*: what stands between single
spaces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qformats.comparing.loaded import LoadedModel
from qformats.comparing.tasks.reading import Reader
from qformats.comparing.tasks.scoring import score
from qformats.comparing.text import Tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qformats.interfaces import Scored

__all__ = ["Cut", "cut", "overlapping", "shortened", "token_losses", "words"]

_STEP = 0.98
"""Share of a text that is kept while it still has too many windows."""


@dataclass(frozen=True)
class Cut:
    """A text in windows.

    Attributes
    ----------
    items : tuple of Scored
        What the model reads of each window.
    tokens : int
        Tokens of the text.
    words : int
        Words of the text.
    """

    items: tuple[Scored, ...]
    tokens: int
    words: int

    @property
    def longest(self) -> int:
        """Most tokens that the model reads at a time."""
        return max((len(item.ids) for item in self.items), default=0)

    @property
    def highest(self) -> int:
        """Highest id that the model reads or predicts."""
        return max((max(*item.ids, *item.targets) for item in self.items), default=0)


def words(text: str) -> int:
    r"""What a perplexity per word divides by: what stands between single spaces.

    >>> words(" = A = \n two words \n")
    6
    """
    return len(text.strip().split(" "))


def overlapping(ids: Sequence[int], window: int, step: int) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """Windows: what is known of each, and what is scored.

    >>> list(overlapping([1, 2, 3, 4, 5, 6, 7], window=6, step=2))
    [([], [1, 2, 3, 4, 5]), ([3, 4, 5], [6, 7])]
    """
    count = math.ceil(max(len(ids) - (window - 1), 0) / step) + 1
    for number in range(count):
        found = ids[number * step : number * step + window - 1]
        known = window - 1 - step if number else 0
        yield found[:known], found[known:]


def cut(text: str, tokenizer: Tokenizer, reader: Reader, window: int, step: int) -> Cut:
    """Cut a text into windows, as a model reads them."""
    ids = tokenizer.literal(text)
    items = [reader.window(before, scored) for before, scored in overlapping(ids, window, step)]
    return Cut(tuple(item for item in items if item.targets), len(ids), words(text))


def shortened(text: str, tokenizer: Tokenizer, window: int, step: int, most: int | None) -> str:
    """The beginning of a text that has at most `most` windows; it ends with a whole word."""
    wanted = math.inf if most is None else window - 1 + (most - 1) * step
    count = len(tokenizer.literal(text))
    share = wanted / max(1, count)
    while count > wanted:
        end = text.rfind(" ", 0, max(1, int(len(text) * share)))
        if end < 1:
            # One word is longer than a window.
            return text
        text = text[:end]
        count = len(tokenizer.literal(text))
        share = _STEP
    return text


def token_losses(
    runner: LoadedModel, windows: Cut, name: str, advance: Callable[[int], None]
) -> NDArray[np.float64]:
    """Loss of every scored token, in the order of the text.

    Raises
    ------
    NonFiniteError
        If the model gives NaN.
    """
    return np.concatenate([each.loss for each in score(runner, windows.items, name, advance)])
