"""LAMBADA: the last word of a passage, from all that comes before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qformats.comparing.loaded import LoadedModel
from qformats.comparing.tasks.beams import search
from qformats.comparing.tasks.reading import Causal
from qformats.comparing.tasks.scoring import score
from qformats.comparing.text import Tokenizer
from qformats.interfaces import BeamSearch, Evaluation, Scored

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Asked", "asked", "right"]


@dataclass(frozen=True)
class Asked:
    """What a model is asked.

    Attributes
    ----------
    items : tuple of Scored
        Passages, of which the tokens of the last word are scored; empty if the model searches for the word.
    questions : tuple of tuple of int
        What it reads before it searches.
    words : tuple of str
        What it should find.
    search : BeamSearch or None
        How it searches.
    """

    items: tuple[Scored, ...] = ()
    questions: tuple[tuple[int, ...], ...] = ()
    words: tuple[str, ...] = ()
    search: BeamSearch | None = None

    @property
    def tokens(self) -> int:
        """Tokens of all last words that are scored; 0 if they are searched for."""
        return sum(len(item.targets) for item in self.items)

    @property
    def highest(self) -> int:
        """Highest id that the model reads or predicts."""
        found = (*(item.ids for item in self.items), *(item.targets for item in self.items), *self.questions)
        return max((max(ids) for ids in found if ids), default=0)


def asked(
    passages: Sequence[tuple[str, str]], tokenizer: Tokenizer, reader: Evaluation | Causal, limit: int | None
) -> Asked:
    """Passages as a model reads them; of those that are too long for it, the end.

    Parameters
    ----------
    passages : sequence of (str, str)
        All but the last word, and the last word.
    tokenizer : Tokenizer
        The model's.
    reader : Evaluation or Causal
        How the model reads.
    limit : int or None
        Tokens that the model takes.
    """
    if isinstance(reader, Causal):
        return Asked(tuple(_forced(context, word, tokenizer, reader, limit) for context, word in passages))
    how = reader.search(tokenizer.literal)
    around = len(reader.question(()))
    room = None if limit is None else max(0, limit - how.tokens - around)
    questions = []
    for context, _ in passages:
        ids = tokenizer.literal(context)
        questions.append(reader.question(ids if room is None else ids[max(0, len(ids) - room) :]))
    return Asked((), tuple(questions), tuple(word for _, word in passages), how)


def _forced(context: str, word: str, tokenizer: Tokenizer, reader: Causal, limit: int | None) -> Scored:
    """A passage whose last tokens are scored: those that the word adds to the context."""
    known, whole = tokenizer.literal(context), tokenizer.literal(f"{context} {word}")
    # A tokenizer may join the word with what is before it: then the last token is the word.
    first = min(len(known), len(whole) - 1)
    before, scored = whole[:first], whole[first:]
    if limit is not None:
        over = len(reader.beginning) + len(whole) - 1 - limit
        before = before[max(0, over) :]
    return reader.window(before, scored)


def right(
    runner: LoadedModel,
    questions: Asked,
    tokenizer: Tokenizer,
    reader: Evaluation | Causal,
    name: str,
    advance: Callable[[int], None],
) -> NDArray[np.bool_]:
    """Whether the model finds the last word, for each passage.

    Raises
    ------
    NonFiniteError
        If the model gives NaN.
    """
    if questions.search is None or isinstance(reader, Causal):
        scores = score(runner, questions.items, name, advance)
        return np.array([bool(each.likeliest.all()) for each in scores])
    found = []
    answers = search(runner, questions.questions, questions.search, advance)
    for beams, word in zip(answers, questions.words, strict=True):
        said = reader.answer([tokenizer.text(beam).strip() for beam in beams])
        # What tokens cannot tell apart, such as wide and narrow letters, is equal.
        found.append(_told(said, tokenizer) == _told(word, tokenizer))
    return np.array(found)


def _told(word: str, tokenizer: Tokenizer) -> str:
    return tokenizer.text(tokenizer.literal(word)).strip()
