"""How GLM-130B was evaluated: blanks are filled, behind a context that sees all of itself.

Sources: GLM-130B:evaluation/dataset.py and GLM-130B:tasks/lambada of 2022.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from typing import Any

from qformats.errors import ConfigError, Described
from qformats.interfaces import BeamSearch, Evaluation, Scored

__all__ = ["BlankFilling"]

_IMAGES = 20000
"""Ids before those of text in GLM-130B, by which the ids below count."""
_NEVER = (20068, 146010, 146337)
"""Quotation marks, which the targets of LAMBADA do not have."""
_NOT_FIRST = (46010, 146337)
"""The same as the first token of an answer. The first id is upstream's, and probably a slip."""
_BEAMS, _TOKENS, _NGRAM = 16, 5, 3
_TILE = 32
"""Upstream fills up questions to a multiple of this, which the length in a beam's score counts."""


class BlankFilling(Evaluation):
    """Reads ``context [gMASK] <sop> answer``: the context sees all of itself, the answer is read from left to right.

    Parameters
    ----------
    config : PreTrainedConfig
        Of the model.

    Examples
    --------
    >>> from qformats_glm.models.configuration import ChatGLM6BConfig
    >>> from qformats_glm.models.evaluation import BlankFilling
    >>> BlankFilling(ChatGLM6BConfig()).window([11, 12], [13, 14])
    Scored(ids=(11, 12, 130001, 130004, 13), targets=(13, 14))
    """

    name = "blank filling"
    summary = "a context that sees all of itself, [gMASK] <sop>, then what is scored; last words by 16 beams"

    def __init__(self, config: Any) -> None:
        self._blank, self._begin = config.gmask_token_id, config.bos_token_id
        self._special = {self._begin, *(token for token, _ in config.blanks if token is not None)}
        ends = config.eos_token_id
        self._ends = tuple(ends) if isinstance(ends, list | tuple) else (ends,)
        self._moved = _IMAGES - config.images

    def window(self, before: Sequence[int], scored: Sequence[int]) -> Scored:
        """All of a window but its last token; what is scored begins at ``<sop>``."""
        return Scored((*self.question(before), *self._plain(scored[:-1])), tuple(scored))

    def question(self, context: Sequence[int]) -> tuple[int, ...]:
        """The context, and a blank for the rest of the text."""
        return (*self._plain(context), self._blank, self._begin)

    def _plain(self, ids: Sequence[int]) -> Sequence[int]:
        """Ids of a text, which must not hold a blank of its own: what a token sees would follow from that one."""
        found = self._special.intersection(ids)
        if found:
            raise ConfigError(
                "text", Described(f"the special token {min(found)}"), "a text without blanks and <sop>"
            )
        return ids

    def search(self, encode: Callable[[str], Sequence[int]]) -> BeamSearch:
        """The search of the LAMBADA task: no punctuation, at most five tokens."""
        marks = [tuple(encode(mark)) for mark in string.punctuation]
        forbidden = [token - self._moved for token in _NEVER]
        forbidden += [mark[0] for mark in marks if len(mark) == 1]
        openings = [(token - self._moved,) for token in _NOT_FIRST]
        return BeamSearch(
            beams=_BEAMS,
            tokens=_TOKENS,
            ends=self._ends,
            forbidden=tuple(forbidden),
            openings=(*openings, *marks),
            ngram=_NGRAM,
            multiple=_TILE,
        )

    def answer(self, beams: Sequence[str]) -> str:
        """First word of the best beam whose second word is punctuation, or of the best beam."""
        for beam in beams:
            words = beam.split(" ")
            # As upstream: a run of punctuation counts if string.punctuation holds it.
            if len(words) > 1 and words[1] in string.punctuation:
                return words[0]
        return beams[0].split(" ")[0]
