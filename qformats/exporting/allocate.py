"""Spending bytes where they lower a sum of losses most: one choice for each tensor, within a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Choice", "allocate"]


@dataclass(frozen=True)
class Choice:
    """What a tensor may become.

    Attributes
    ----------
    format : str
        Full name.
    nbytes : int
        What it takes.
    loss : float
        What it costs.

    Examples
    --------
    >>> from qformats.exporting.allocate import Choice
    >>> Choice("gguf:q4_k", 144, 0.002).nbytes
    144
    """

    format: str
    nbytes: int
    loss: float


def allocate(choices: Mapping[str, Sequence[Choice]], budget: int) -> dict[str, Choice]:
    """One choice per tensor: the least sum of losses, as far as a greedy walk finds it, in no more than so many bytes.

    Every tensor begins with its smallest choice. Then the step that lowers the loss most per byte is taken, along each
    tensor's convex hull, until none fits; what is left goes to single steps off the hull.

    Parameters
    ----------
    choices : mapping of str to sequence of Choice
        At least one for each tensor; the smallest ones together fit.
    budget : int
        Bytes.

    Returns
    -------
    dict of str to Choice
        In the order of `choices`.

    Examples
    --------
    >>> from qformats.exporting.allocate import Choice, allocate
    >>> small, large = Choice("small", 10, 1.0), Choice("large", 15, 0.2)
    >>> found = allocate({"a": [small, large], "b": [Choice("small", 10, 0.3), Choice("large", 15, 0.1)]}, 25)
    >>> [choice.format for choice in found.values()]
    ['large', 'small']
    """
    chosen = {
        name: min(each, key=lambda choice: (choice.nbytes, choice.loss)) for name, each in choices.items()
    }
    left = budget - sum(choice.nbytes for choice in chosen.values())
    hulls = {name: _hull(each) for name, each in choices.items()}
    for among in (hulls, choices):
        while True:
            steps = [
                (_gain(chosen[name], choice), name, choice)
                for name, each in among.items()
                for choice in _next(chosen[name], each, whole=among is choices)
                if choice.nbytes - chosen[name].nbytes <= left
            ]
            if not steps:
                break
            _, name, choice = max(steps, key=lambda step: step[0])
            left -= choice.nbytes - chosen[name].nbytes
            chosen[name] = choice
    return chosen


def _gain(now: Choice, then: Choice) -> float:
    """Loss that is saved for each byte."""
    return (now.loss - then.loss) / max(1, then.nbytes - now.nbytes)


def _next(now: Choice, choices: Sequence[Choice], *, whole: bool) -> Sequence[Choice]:
    """Choices that are better: on a hull the next one, otherwise all."""
    better = [choice for choice in choices if choice.loss < now.loss and choice.nbytes >= now.nbytes]
    return better if whole else better[:1]


def _hull(choices: Sequence[Choice]) -> list[Choice]:
    """Choices of which no mixture of two others is better, from small to large."""
    hull: list[Choice] = []
    for choice in sorted(choices, key=lambda each: (each.nbytes, each.loss)):
        if hull and choice.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-1], choice):
            hull.pop()
        hull.append(choice)
    return hull
