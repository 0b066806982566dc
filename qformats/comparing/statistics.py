"""Statistics of predictions, defined as llama.cpp's perplexity tool defines them, in float64."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from qformats.comparing.report import (
    BehaviourChange,
    BehaviourResult,
    Estimate,
    Histogram,
    KLDivergence,
    Percentiles,
    ProbabilityChange,
    TokenChange,
    WindowChange,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["behaviour_alone", "behaviour_change", "mean_estimate"]

_EDGES = tuple(float(edge) for edge in np.logspace(-7, 2, 46))
"""Bounds of the histogram, nats: five bins per decade, the same for all models."""
_PERCENTS = (0, 0.1, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9, 100)


def mean_estimate(values: Floats) -> Estimate:
    """Mean and its standard error, ``sqrt((E[v²] - E[v]²) / (N - 1))``; infinite for a single value."""
    return Estimate(float(values.mean()), math.sqrt(_variance(values, values)))


def _variance(first: Floats, second: Floats) -> float:
    """Covariance of two means; the variance of one, if both are the same."""
    if len(first) < 2:
        return math.inf
    spread = float(((first - first.mean()) * (second - second.mean())).mean())
    return spread / (len(first) - 1)


def percentiles(values: Floats) -> Percentiles:
    """Distribution of values, interpolated linearly."""
    return Percentiles(*(float(value) for value in np.percentile(values, _PERCENTS)))


def behaviour_alone(loss: Floats) -> BehaviourResult:
    """Statistics of a model's own predictions.

    Parameters
    ----------
    loss : ndarray
        float64, ``(N,)``: negative log-likelihood of each scored token, nats.
    """
    return BehaviourResult(len(loss), _perplexity(mean_estimate(loss)), None)


def _perplexity(loss: Estimate) -> Estimate:
    """``exp`` of a mean loss, and what its standard error becomes."""
    try:
        value = math.exp(loss.value)
    except OverflowError:
        return Estimate(math.inf, math.inf)
    return Estimate(value, value * loss.error)


def behaviour_change(
    base: Floats,
    loss: Floats,
    kl: Floats,
    same_top: NDArray[np.bool_],
    worst: tuple[TokenChange, ...],
    scored: int,
) -> BehaviourResult:
    """Statistics of a model's predictions against the base's at the same positions.

    Parameters
    ----------
    base, loss : ndarray
        float64, ``(N,)``: negative log-likelihood of each scored token under the base and under the model, nats.
    kl : ndarray
        float64, ``(N,)``: divergence of the model from the base, nats.
    same_top : ndarray
        bool, ``(N,)``: whether both have the same most probable token.
    worst : tuple of TokenChange
        For the report.
    scored : int
        Scored tokens of each window; `N` is a multiple of it.
    """
    count = len(loss)
    by_window = [values.reshape(-1, scored).mean(1) for values in (kl, loss - base)]
    before, after = mean_estimate(base), mean_estimate(loss)
    covariance = _variance(base, loss)
    log_ratio = Estimate(
        after.value - before.value,
        _root(after.error**2 + before.error**2 - 2 * covariance),
    )
    ours, theirs = _perplexity(after), _perplexity(before)
    difference = Estimate(
        ours.value - theirs.value,
        _root(ours.error**2 + theirs.error**2 - 2 * covariance * ours.value * theirs.value),
    )
    spread = after.error * before.error
    # Losses that do not vary, or of one token, are equal.
    correlation = covariance / spread if spread and math.isfinite(spread) else 1.0
    same = float(same_top.mean())
    against = BehaviourChange(
        perplexity_difference=difference,
        perplexity_ratio=_perplexity(log_ratio),
        log_ratio=log_ratio,
        correlation=correlation,
        kl=KLDivergence(mean_estimate(kl), percentiles(kl)),
        probability=_probability_change(np.exp(-loss) - np.exp(-base)),
        same_top=Estimate(same, math.sqrt(same * (1 - same) / (count - 1)) if count > 1 else math.inf),
        kl_histogram=_histogram(kl),
        worst=worst,
        windows=tuple(WindowChange(float(a), float(b)) for a, b in zip(*by_window, strict=True)),
    )
    return BehaviourResult(count, ours, against)


def _root(variance: float) -> float:
    """Standard error of a variance, which rounding may have made negative."""
    return math.sqrt(max(0.0, variance)) if math.isfinite(variance) else math.inf


def _probability_change(change: Floats) -> ProbabilityChange:
    square = mean_estimate(change**2)
    rms = math.sqrt(square.value)
    error = 0.5 / rms * square.error if rms else 0.0
    return ProbabilityChange(mean_estimate(change), Estimate(rms, error), percentiles(change))


def _histogram(kl: Floats) -> Histogram:
    bins = np.clip(np.searchsorted(_EDGES, kl, side="right") - 1, 0, len(_EDGES) - 2)
    counts = np.bincount(bins, minlength=len(_EDGES) - 1)
    return Histogram(_EDGES, tuple(int(count) for count in counts))
