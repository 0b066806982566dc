"""Results of tasks, and what they prove, in float64.

Tokens that stand together are about one thing, so that stretches of the text as long as a step are the units of a
perplexity's standard error; passages are those of an accuracy's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from qformats.comparing.estimate import Estimate
from qformats.comparing.evidence import LEAST_TOKENS, LEAST_WINDOWS, student
from qformats.comparing.task_report import MOST_NATS, Finding, TaskChange

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["accuracy", "accuracy_change", "perplexity", "perplexity_change"]

_CHANCE = 0.05
_FEWEST = 6
"""Passages from which on a sign test can prove anything: 2 / 2**6 is below :data:`_CHANCE`."""


def _mean(losses: Floats, length: int, count: int) -> Estimate:
    """Sum over a count, and its standard error from stretches of a length; infinite for a single one.

    The stretches need not be of one length: this is the estimator of a ratio, the loss of a stretch to its tokens.
    """
    starts = range(0, len(losses), length)
    sums = np.array([losses[start : start + length].sum() for start in starts])
    sizes = np.array([len(losses[start : start + length]) for start in starts])
    value = float(losses.sum()) / count
    if len(sums) < 2:
        return Estimate(value, math.inf)
    rest = sums - sizes * (losses.sum() / len(losses))
    spread = math.sqrt(float((rest**2).sum()) * len(sums) / (len(sums) - 1))
    return Estimate(value, spread / count)


def perplexity(losses: Floats, words: int, step: int) -> tuple[Estimate, float]:
    """Perplexity per word, and the loss per word.

    Parameters
    ----------
    losses : ndarray
        float64, ``(N,)``: of every scored token, in the order of the text, nats.
    words : int
        Words of the text.
    step : int
        Tokens of a stretch.
    """
    found = _mean(losses, step, words)
    value = math.exp(min(MOST_NATS, found.value))
    return Estimate(value, value * found.error if found.value <= MOST_NATS else math.inf), found.value


def perplexity_change(base: Floats, losses: Floats, words: int, step: int) -> TaskChange:
    """A perplexity against the base's; both have read the same tokens."""
    log_ratio = _mean(losses - base, step, words)
    before, after = (_mean(each, step, words) for each in (base, losses))
    ours, theirs = (math.exp(min(MOST_NATS, each.value)) for each in (after, before))
    stretches = -(-len(losses) // step)
    finding = Finding.NO_DIFFERENCE
    if len(losses) < LEAST_TOKENS or stretches < LEAST_WINDOWS:
        finding = Finding.TOO_LITTLE
    elif abs(log_ratio.value) > student(stretches - 1) * log_ratio.error:
        finding = Finding.WORSE if log_ratio.value > 0 else Finding.BETTER
    told = max(after.value, before.value) <= MOST_NATS
    # Of two perplexities that move together, the difference is known as well as their ratio.
    error = _difference_error(base, losses, words, step, ours, theirs) if told else math.inf
    return TaskChange(Estimate(ours - theirs, error), log_ratio, 0, 0, finding)


def _difference_error(
    base: Floats, losses: Floats, words: int, step: int, ours: float, theirs: float
) -> float:
    """Standard error of the difference of two perplexities, to first order."""
    return _mean(ours * losses - theirs * base, step, words).error


def accuracy(right: Sequence[bool] | NDArray[np.bool_]) -> Estimate:
    """Share of right answers, and its standard error.

    >>> accuracy([True, False, True, True])
    Estimate(value=0.75, error=0.25)
    """
    found = np.asarray(right, np.float64)
    value, count = float(found.mean()), len(found)
    return Estimate(value, math.sqrt(value * (1 - value) / (count - 1)) if count > 1 else math.inf)


def accuracy_change(base: NDArray[np.bool_], right: NDArray[np.bool_]) -> TaskChange:
    """An accuracy against the base's on the same passages."""
    change = right.astype(np.float64) - base
    count, value = len(change), float(change.mean())
    error = math.sqrt(float(change.var()) / (count - 1)) if count > 1 else math.inf
    lost, gained = int((base & ~right).sum()), int((right & ~base).sum())
    finding = Finding.NO_DIFFERENCE
    if count < _FEWEST:
        finding = Finding.TOO_LITTLE
    elif _by_chance(lost, gained) < _CHANCE:
        finding = Finding.WORSE if lost > gained else Finding.BETTER
    return TaskChange(Estimate(value, error), None, lost, gained, finding)


def _by_chance(first: int, second: int) -> float:
    """Chance that so many fair coins fall at least as unevenly.

    >>> _by_chance(6, 0), _by_chance(3, 3)
    (0.03125, 1.0)
    """
    count, fewer = first + second, min(first, second)
    below = sum(math.comb(count, number) for number in range(fewer + 1))
    # Whole numbers: floats cannot hold the coins of thousands of passages.
    return min(1.0, 2 * below / 2**count) if count else 1.0
