"""What llama.cpp's perplexity tool prints, computed from logits in numpy as its source defines each number.

It follows llama.cpp:tools/perplexity/perplexity.cpp, with sums in float64 and without the file of base logits in
between. Nothing here imports qformats.
"""

from __future__ import annotations

import numpy as np

PERCENTS = {
    "min": 0,
    "p0_1": 0.1,
    "p1": 1,
    "p5": 5,
    "p10": 10,
    "p25": 25,
    "median": 50,
    "p75": 75,
    "p90": 90,
    "p95": 95,
    "p99": 99,
    "p99_9": 99.9,
    "max": 100,
}


def log_softmax(logits):
    """Row by row, float64."""
    logits = np.asarray(logits, np.float64)
    highest = logits.max(axis=1, keepdims=True)
    return logits - highest - np.log(np.exp(logits - highest).sum(axis=1, keepdims=True))


def mean_and_uncertainty(total, squares, count):
    """Of `count` values: ``f = sum / n`` and ``sqrt((sum2 / n - f^2) / (n - 1))``."""
    mean = total / count
    spread = squares / count - mean * mean
    return mean, np.sqrt(max(0.0, spread) / (count - 1))


def percentile(values, fraction):
    """Linear interpolation at ``fraction * (n - 1)`` of the sorted values."""
    ordered = sorted(values)
    if fraction <= 0:
        return ordered[0]
    if fraction >= 1:
        return ordered[-1]
    place = fraction * (len(ordered) - 1)
    low = int(place)
    rest = place - low
    return (1 - rest) * ordered[low] + rest * ordered[min(low + 1, len(ordered) - 1)]


def per_token(base_logits, logits, targets):
    """Negative log-likelihoods of both, divergence, and whether the top token is the same; each ``(N,)``."""
    before, after = log_softmax(base_logits), log_softmax(logits)
    loss_before, loss_after, divergence, same = [], [], [], []
    for p, q, token in zip(before, after, targets, strict=True):
        loss_before.append(-p[token])
        loss_after.append(-q[token])
        counted = p > -16.0
        divergence.append((np.exp(p[counted]) * (p[counted] - q[counted])).sum())
        same.append(int(np.argmax(p)) == int(np.argmax(q)))
    return tuple(map(np.array, (loss_before, loss_after, divergence, same)))


def statistics(loss_before, loss_after, divergence, same):
    """Every number of the tool, as (value, uncertainty) where it prints both."""
    count = len(loss_before)
    log_p, log_p_error = mean_and_uncertainty(loss_before.sum(), (loss_before**2).sum(), count)
    log_q, log_q_error = mean_and_uncertainty(loss_after.sum(), (loss_after**2).sum(), count)
    covariance = ((loss_before * loss_after).sum() / count - log_p * log_q) / (count - 1)
    ppl_p, ppl_q = np.exp(log_p), np.exp(log_q)
    ppl_p_error, ppl_q_error = ppl_p * log_p_error, ppl_q * log_q_error
    log_ratio = log_q - log_p
    log_ratio_error = np.sqrt(log_p_error**2 + log_q_error**2 - 2 * covariance)
    ratio = np.exp(log_ratio)
    difference = ppl_q - ppl_p
    difference_error = np.sqrt(ppl_q_error**2 + ppl_p_error**2 - 2 * covariance * ppl_q * ppl_p)
    change = np.exp(-loss_after) - np.exp(-loss_before)
    square, square_error = mean_and_uncertainty((change**2).sum(), (change**4).sum(), count)
    top = same.sum() / count
    return {
        "ppl_base": (ppl_p, ppl_p_error),
        "ppl": (ppl_q, ppl_q_error),
        "correlation": covariance / (log_p_error * log_q_error),
        "log_ratio": (log_ratio, log_ratio_error),
        "ratio": (ratio, ratio * log_ratio_error),
        "difference": (difference, difference_error),
        "kl": mean_and_uncertainty(divergence.sum(), (divergence**2).sum(), count),
        "kl_percentiles": {name: percentile(divergence, at / 100) for name, at in PERCENTS.items()},
        "change": mean_and_uncertainty(change.sum(), (change**2).sum(), count),
        "change_percentiles": {name: percentile(change, at / 100) for name, at in PERCENTS.items()},
        "rms": (np.sqrt(square), 0.5 / np.sqrt(square) * square_error),
        "same_top": (top, np.sqrt(top * (1 - top) / (count - 1))),
    }


def told(result):
    """The same numbers out of a `BehaviourResult`, under the same names."""
    against = result.against

    def pair(estimate):
        return estimate.value, estimate.error

    def spread(percentiles):
        return {name: getattr(percentiles, name) for name in PERCENTS}

    return {
        "ppl": pair(result.perplexity),
        "correlation": against.correlation,
        "log_ratio": pair(against.log_ratio),
        "ratio": pair(against.perplexity_ratio),
        "difference": pair(against.perplexity_difference),
        "kl": pair(against.kl.mean),
        "kl_percentiles": spread(against.kl.percentiles),
        "change": pair(against.probability.mean),
        "change_percentiles": spread(against.probability.percentiles),
        "rms": pair(against.probability.rms),
        "same_top": pair(against.same_top),
    }
