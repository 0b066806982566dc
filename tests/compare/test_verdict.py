"""What the page advises, and what it does not say because the text does not prove it."""

from __future__ import annotations

import dataclasses
import math
import random
import statistics

import numpy as np
import pytest
from compare.page_example import example, model, windows

from qformats.comparing.evidence import (
    LIMIT,
    Closeness,
    closer,
    evidence,
    interval,
    shortage,
    windows_needed,
)
from qformats.comparing.page.verdict import judge
from qformats.comparing.report import CompareReport, Estimate, TextUsed, WindowChange

TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 7: 2.365, 9: 2.262, 19: 2.093, 31: 2.040, 120: 1.980}
"""Student's t, 97.5 %, from a printed table."""


def text(windows: int, length: int = 512) -> TextUsed:
    return TextUsed("text", 0, windows * length, windows, length, windows * (length - 1 - length // 2))


def report(
    *models: tuple[str, float, tuple[WindowChange, ...]], used: TextUsed | None = None
) -> CompareReport:
    """Models by name, bits per weight and what each window says of them."""
    made = []
    for name, bits, changes in models:
        kl = math.fsum(w.kl for w in changes) / len(changes)
        one = model(name, "gguf:q4_0", bits, kl or 1e-9, 0.05)
        against = dataclasses.replace(one.behaviour.against, windows=changes)
        against = dataclasses.replace(
            against, kl=dataclasses.replace(against.kl, mean=Estimate(kl, 0.1 * kl))
        )
        made.append(dataclasses.replace(one, behaviour=dataclasses.replace(one.behaviour, against=against)))
    count = len(models[0][2])
    return dataclasses.replace(example(()), models=tuple(made), text=used or text(count))


@pytest.mark.parametrize(("freedom", "bound"), TABLE.items())
def test_intervals_are_students(freedom, bound):
    values = [float(i * i % 11) for i in range(freedom + 1)]
    found = interval(values)
    half = bound * statistics.stdev(values) / math.sqrt(len(values))
    assert found.high - found.mean == pytest.approx(half, rel=1.5e-3)
    assert found.mean - found.low == pytest.approx(half, rel=1.5e-3)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Few windows of a skewed quantity whose tokens hang together: nineteen times in twenty, nearly."""
    generator = np.random.default_rng(0)
    held = alike = 0
    for _ in range(2000):
        topics = generator.gamma(4, 0.25, 8)  # mean 1
        tokens = topics[:, None] * generator.exponential(1.0, (8, 255))
        found = interval(tokens.mean(1).tolist())
        held += found.low <= 1 <= found.high
        # What takes the tokens to be independent would be right far too seldom.
        alike += abs(tokens.mean() - 1) <= 1.96 * tokens.std() / math.sqrt(tokens.size)
    assert 0.90 < held / 2000 < 0.97
    assert alike / 2000 < 0.5


def test_without_spread_there_is_no_doubt_and_with_one_window_nothing_else():
    assert interval([0.5, 0.5, 0.5]) == pytest.approx((0.5, 0.5, 0.5)) or interval([0.5] * 3).low == 0.5
    assert (interval([0.5]).low, interval([0.5]).high) == (-math.inf, math.inf)
    assert interval([math.inf, 1.0]).low == math.inf
    assert interval([math.nan, 1.0]).high == math.inf


def test_a_clear_difference_is_a_verdict():
    close, apart = windows(0.01, 0.005, 0.002), windows(0.3, 0.2, 0.02)
    verdict = judge(report(("small", 3.0, apart), ("large", 5.0, close)))
    assert verdict.headline == "Ship large."
    assert [s.model.name for s in verdict.standings if s.advised] == ["large"]
    assert [s.word for s in verdict.standings] == ["very different", "very close"]
    assert "small is smaller still, but is very different." in verdict.detail


def test_no_difference_is_no_reason_to_prefer_the_larger():
    """Two models whose intervals overlap: neither beats the other, and the smaller one is shipped."""
    noise = random.Random(0)
    one = tuple(WindowChange(0.01 + noise.gauss(0, 0.002), noise.gauss(0, 0.002)) for _ in range(8))
    other = tuple(WindowChange(0.0101 + noise.gauss(0, 0.002), noise.gauss(0, 0.002)) for _ in range(8))
    verdict = judge(report(("small", 4.0, one), ("large", 5.0, other)))
    assert verdict.headline == "Ship small."
    assert [s.beaten_by for s in verdict.standings] == [None, None]
    assert "(no difference that this text proves)" in verdict.standings[0].cost


def test_paired_differences_tell_models_apart_whose_own_intervals_overlap():
    """Windows differ far more than the models do in each of them."""
    topics = [0.002, 0.03, 0.011, 0.024, 0.007, 0.018, 0.015, 0.005]
    one = tuple(WindowChange(0.9 * kl, 0.001) for kl in topics)
    other = tuple(WindowChange(kl, 0.001) for kl in topics)
    first, second = (interval([w.kl for w in each]) for each in (one, other))
    assert first.high > second.low
    verdict = judge(report(("better", 4.0, one), ("worse", 5.0, other)))
    assert {s.model.name: s.beaten_by for s in verdict.standings} == {"better": None, "worse": "better"}


def test_the_same_predictions_at_a_smaller_size_beat():
    same = windows(0.01, 0.005, 0.004)
    verdict = judge(report(("small", 4.0, same), ("large", 5.0, same)))
    assert {s.model.name: s.beaten_by for s in verdict.standings} == {"small": None, "large": "small"}


@pytest.mark.parametrize(
    ("count", "length", "missing"),
    [
        # The first is what one window of 512 has.
        (1, 512, "3 more windows of 512"),
        (3, 4096, "1 more window of 4096"),
        (8, 64, "25 more windows of 64"),
    ],
)
def test_too_few_tokens_are_no_verdict(count, length, missing):
    used = text(count, length)
    verdict = judge(report(("small", 4.0, windows(0.01, 0.005, 0.002, count)), used=used))
    assert verdict.headline == "No verdict."
    assert verdict.detail == shortage(used)
    assert f"{used.scored:,} tokens were scored" in verdict.detail
    assert missing in verdict.detail
    standing = verdict.standings[0]
    assert (standing.advised, standing.grade, standing.word, standing.beaten_by) == (False, None, "", None)


def test_enough_tokens_are_enough():
    assert shortage(text(4)) == ""
    assert "Too few" in shortage(text(3))
    assert "Too few" in shortage(text(7, 256))  # 889 tokens


def test_an_interval_that_holds_the_limit_is_no_verdict():
    doubtful = windows(LIMIT, 0.01, 0.05)
    doubtful = tuple(dataclasses.replace(w, kl=w.kl + 0.005) for w in doubtful)
    found = evidence(report(("a", 4.0, doubtful)).models[0].behaviour.against)
    assert found.closeness is Closeness.UNDECIDED
    verdict = judge(report(("doubtful", 4.0, doubtful)))
    assert verdict.headline == "No verdict yet."
    assert "does not tell whether doubtful stays close" in verdict.detail
    assert f"{found.missing:,} more windows of 512" in verdict.detail
    assert verdict.standings[0].word.startswith("between ")
    assert not verdict.standings[0].advised
    # As many windows of the same kind as it asked for do tell.
    kl = [w.kl for w in doubtful]
    times = math.ceil((len(kl) + found.missing) / len(kl))
    assert interval(kl * times).low > LIMIT
    assert interval(kl * (times // 2)).low < LIMIT


def test_a_smaller_model_in_doubt_leaves_the_question_open():
    doubtful = tuple(dataclasses.replace(w, kl=w.kl + 0.005) for w in windows(LIMIT, 0.01, 0.05))
    verdict = judge(report(("small", 4.0, doubtful), ("large", 8.0, windows(0.001, 0.0, 0.0004))))
    assert verdict.headline == "large stays close to the base; whether a smaller one does is open."
    assert "does not tell whether small stays close" in verdict.detail
    assert [s.model.name for s in verdict.standings if s.advised] == ["large"]


def test_a_loss_on_the_text_counts_beside_the_divergence():
    """Predictions that change little, always to the worse."""
    verdict = judge(report(("unlucky", 4.0, windows(0.02, 0.2, 0.004))))
    assert verdict.headline.startswith("None of these stays close")
    assert "its perplexity rises by 22.1" in verdict.detail


def test_windows_needed_shrink_with_the_distance():
    values = [w.kl for w in windows(0.1, 0.0, 0.05)]
    near, far = windows_needed(values, 0.09), windows_needed(values, 0.06)
    assert far < near
    # Half-widths fall with the root of the number of windows.
    spread = statistics.stdev(values)
    assert near == pytest.approx((1.96 * spread / 0.01) ** 2, rel=0.1)
    assert windows_needed(values, math.fsum(values) / len(values)) is None
    assert windows_needed([0.1], 0.06) is None


def test_models_of_other_texts_are_not_told_apart():
    one, other = (report(("a", 4.0, windows(kl, 0, 0.001, n))) for kl, n in ((0.1, 8), (0.2, 4)))
    assert not closer(one.models[0].behaviour.against, other.models[0].behaviour.against)
