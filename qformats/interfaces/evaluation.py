"""How a model is evaluated that does not read from left to right: what it is given, and which tokens are scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from qformats.work.guard import Guarded
from qformats.work.shown import Shown

__all__ = ["BeamSearch", "Evaluation", "Scored"]


@dataclass(frozen=True)
class Scored:
    """A sequence that a model reads, and the tokens that are scored.

    Attributes
    ----------
    ids : tuple of int
        What the model reads.
    targets : tuple of int
        What it should predict at the last ``len(targets)`` positions, which see nothing that comes after them.

    Examples
    --------
    >>> from qformats.interfaces import Scored
    >>> Scored(ids=(1, 11, 12), targets=(11, 12, 13)).targets[-1]
    13
    """

    ids: tuple[int, ...]
    targets: tuple[int, ...]


@dataclass(frozen=True)
class BeamSearch:
    """A deterministic beam search for a short answer.

    The score of a finished beam is the sum of its log-probabilities over ``((5 + length) / 6) ** length_penalty``,
    where the length counts the question too. Of each step, the ``(ends + 1) * beams`` likeliest continuations are
    looked at.

    Attributes
    ----------
    beams : int
        Beams that are continued, and most finished ones that are kept.
    tokens : int
        Tokens of an answer at most, the one that ends it included.
    ends : tuple of int
        Ids that end an answer.
    forbidden : tuple of int
        Ids that no answer contains.
    openings : tuple of tuple of int
        What no answer begins with.
    ngram : int
        Length of a run of tokens that no answer contains twice; 0 allows all.
    length_penalty : float
        Exponent of the length.
    multiple : int
        The length of a question counts as if it were filled up to a multiple of this.

    Examples
    --------
    >>> from qformats.interfaces import BeamSearch
    >>> BeamSearch(beams=4, tokens=5, ends=(2,)).length_penalty
    1.0
    """

    beams: int
    tokens: int
    ends: tuple[int, ...]
    forbidden: tuple[int, ...] = ()
    openings: tuple[tuple[int, ...], ...] = ()
    ngram: int = 0
    length_penalty: float = 1.0
    multiple: int = 1


class Evaluation(Shown, Guarded, ABC):
    """How models of a class read the texts of ``qformats compare --tasks``.

    A :class:`~qformats.interfaces.ModelClass` returns one if its models do not read a text from left to right, or if
    their published numbers were measured in another way.

    Examples
    --------
    A model that wants a line end between what is known and what is asked:

    >>> from qformats.interfaces import BeamSearch, Evaluation, Scored
    >>> class Asked(Evaluation):
    ...     name = "asked"
    ...     summary = "a line end before what is asked"
    ...
    ...     def window(self, before, scored):
    ...         return Scored((*before, 10, *scored[:-1]), tuple(scored))
    ...
    ...     def question(self, context):
    ...         return (*context, 10)
    ...
    ...     def search(self, encode):
    ...         return BeamSearch(beams=1, tokens=5, ends=(2,))
    ...
    ...     def answer(self, beams):
    ...         return beams[0].split()[0]
    >>> Asked().window([5, 6], [7, 8])
    Scored(ids=(5, 6, 10, 7), targets=(7, 8))
    """

    guarded = ("window", "question", "search", "answer")
    role = "evaluation"

    name: ClassVar[str]
    summary: ClassVar[str] = ""

    def _shown_facts(self) -> dict[str, str]:
        return {"name": getattr(self, "name", ""), "summary": self.summary}

    @abstractmethod
    def window(self, before: Sequence[int], scored: Sequence[int]) -> Scored:
        """What the model reads of a window of a text.

        Parameters
        ----------
        before : sequence of int
            Tokens that are known; none in a text's first window.
        scored : sequence of int
            Tokens after them, which are scored; one or more.
        """

    @abstractmethod
    def question(self, context: Sequence[int]) -> tuple[int, ...]:
        """What the model reads of a passage whose next word is asked for."""

    @abstractmethod
    def search(self, encode: Callable[[str], Sequence[int]]) -> BeamSearch:
        """How the word is searched for.

        Parameters
        ----------
        encode : callable
            Turns a text into ids, without the special ones around it.
        """

    @abstractmethod
    def answer(self, beams: Sequence[str]) -> str:
        """The word that the model answers with.

        Parameters
        ----------
        beams : sequence of str
            Texts of the beams without spaces around them, the best first; one or more.
        """
