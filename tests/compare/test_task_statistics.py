"""What tasks prove: standard errors and tests against their definitions."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from qformats.comparing.report import Finding
from qformats.comparing.tasks.statistics import accuracy, accuracy_change, perplexity, perplexity_change


def test_a_perplexity_by_hand():
    """Two words, four tokens: 6 nats in all, 3 a word."""
    value, per_word = perplexity(np.array([1.0, 2.0, 2.0, 1.0]), words=2, step=2)
    assert per_word == 3
    assert value.value == pytest.approx(math.exp(3))
    assert value.error == 0, "both stretches are alike"


def test_stretches_of_one_length_have_the_usual_error():
    losses = np.random.default_rng(0).gamma(2, 1.5, 40 * 64)
    value, per_word = perplexity(losses, words=1000, step=64)
    means = losses.reshape(40, 64).mean(1)
    # The mean of a token, times tokens for a word.
    error = statistics.stdev(means) / math.sqrt(40) * len(losses) / 1000
    assert value.error == pytest.approx(value.value * error)
    assert per_word == pytest.approx(losses.sum() / 1000)


def test_a_short_rest_counts_by_its_length():
    """Equal losses a token say nothing of spread, however short the last stretch is."""
    value, _ = perplexity(np.full(130, 0.5), words=50, step=64)
    assert value.error == pytest.approx(0, abs=1e-12)
    assert perplexity(np.full(60, 0.5), words=50, step=64)[0].error == math.inf


def test_what_is_not_told_is_capped():
    value, per_word = perplexity(np.full(100, 21.0), words=100, step=10)
    assert (per_word, value.value, value.error) == (21.0, math.exp(20), math.inf)


@pytest.mark.parametrize(
    ("shift", "spread", "count", "finding"),
    [
        (0.02, 0.1, 40, Finding.WORSE),
        (-0.02, 0.1, 40, Finding.BETTER),
        (0.0, 0.1, 40, Finding.NO_DIFFERENCE),
        (0.02, 5.0, 40, Finding.NO_DIFFERENCE),
        (0.02, 0.0, 10, Finding.TOO_LITTLE),
    ],
)
def test_a_changed_perplexity(shift, spread, count, finding):
    generator = np.random.default_rng(3)
    base = generator.gamma(2, 1.5, count * 64)
    noise = generator.normal(0, spread, len(base))
    found = perplexity_change(base, base + shift + noise - noise.mean(), 1000, 64)
    assert found.finding is finding
    assert found.log_ratio.value == pytest.approx(shift * len(base) / 1000)
    ours, theirs = (perplexity(each, 1000, 64)[0] for each in (base + shift + noise - noise.mean(), base))
    assert found.difference.value == pytest.approx(ours.value - theirs.value)
    # Both have read the same tokens: that is known better than either.
    if spread < 1 and count > 10:
        assert found.difference.error < theirs.error


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Stretches that hang together within, 40 of them: 95 % of the ratios lie within what calls them no difference."""
    generator = np.random.default_rng(5)
    held = 0
    for _ in range(400):
        noise = np.repeat(generator.normal(0, 0.1, 40), 64) + generator.normal(0, 0.3, 40 * 64)
        held += perplexity_change(np.full(2560, 2.0), 2.0 + noise, 1000, 64).finding is Finding.NO_DIFFERENCE
    assert 0.92 <= held / 400 <= 0.98


def test_an_accuracy_by_hand():
    found = accuracy(np.array([True] * 8 + [False] * 2))
    assert found.value == 0.8
    assert found.error == pytest.approx(math.sqrt(0.8 * 0.2 / 9))
    assert accuracy([True]).error == math.inf


@pytest.mark.parametrize(
    ("lost", "gained", "finding"),
    [
        (6, 0, Finding.WORSE),  # 2 / 64 = 0.031
        (5, 0, Finding.NO_DIFFERENCE),  # 2 / 32 = 0.063
        (0, 6, Finding.BETTER),
        (10, 2, Finding.WORSE),  # 2 * (1 + 12 + 66) / 4096 = 0.039
        (10, 3, Finding.NO_DIFFERENCE),  # 2 * (1 + 13 + 78 + 286) / 8192 = 0.092
        (0, 0, Finding.NO_DIFFERENCE),
    ],
)
def test_a_changed_accuracy(lost, gained, finding):
    base = np.array([True] * lost + [False] * gained + [True] * 50 + [False] * 50)
    right = np.array([False] * lost + [True] * gained + [True] * 50 + [False] * 50)
    found = accuracy_change(base, right)
    assert (found.lost, found.gained, found.finding) == (lost, gained, finding)
    assert found.difference.value == pytest.approx((gained - lost) / len(base))
    assert accuracy_change(base[:5], right[:5]).finding is Finding.TOO_LITTLE


def test_thousands_of_passages_are_no_overflow():
    base, right = np.array([True, False] * 2500), np.array([False, True] * 2500)
    assert accuracy_change(base, right).finding is Finding.NO_DIFFERENCE
