"""What to ship: the trade-off between size and quality, in words.

The words are based on the mean Kullback-Leibler divergence from the base if the models were run, and on nothing if they
were not: an error of the weights does not tell what it does to predictions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qformats.comparing.page.numbers import PERCENT, estimate, fixed, percent, share, times
from qformats.comparing.report import BehaviourChange, CompareReport, Estimate, ModelResult

__all__ = ["GRADES", "Standing", "Verdict", "behaviour_change", "judge", "weight_cost"]


@dataclass(frozen=True)
class Grade:
    """A word for a mean KL divergence below `limit`, nats per token; `key` is its CSS class."""

    limit: float
    word: str
    key: str


GRADES = (
    Grade(0.002, "practically lossless", "lossless"),
    Grade(0.02, "very close", "very-close"),
    Grade(0.06, "close", "close"),
    Grade(0.2, "noticeably different", "noticeable"),
    Grade(math.inf, "very different", "different"),
)
"""Best first. A model that is at least close may be recommended."""
_ADVISABLE = GRADES[2].limit
_EXACT = Grade(0, "the same numbers", "lossless")


@dataclass(frozen=True)
class Standing:
    """One model among the others.

    Attributes
    ----------
    model : ModelResult
        The model.
    grade : Grade or None
        ``None`` where it was not run against the base.
    beaten_by : str or None
        Name of a model that is no larger and no worse, and better in one of the two.
    advised : bool
        Whether it is the one to ship.
    cost : str
        What it costs, in a sentence or two.
    """

    model: ModelResult
    grade: Grade | None
    beaten_by: str | None
    advised: bool
    cost: str


@dataclass(frozen=True)
class Verdict:
    """Advice and its grounds: a headline, a sentence of detail, and every model's standing, smallest first."""

    headline: str
    detail: str
    standings: tuple[Standing, ...]


def behaviour_change(model: ModelResult) -> BehaviourChange | None:
    """What the model predicts against the base, if it was run."""
    return model.behaviour.against if model.behaviour else None


def weight_cost(model: ModelResult) -> float | None:
    """Relative error of all weights, if they were compared."""
    return model.weights.total.relative_rmse if model.weights else None


def _divergence(model: ModelResult) -> float | None:
    change = behaviour_change(model)
    # NaN has no order; what diverges without bound is worst.
    return None if change is None or math.isnan(change.kl.mean.value) else change.kl.mean.value


def _same_numbers(model: ModelResult) -> bool:
    return model.weights is not None and model.weights.total.max_error == 0


def _grade(model: ModelResult) -> Grade | None:
    divergence = _divergence(model)
    # Equal tensors prove nothing if the model has others: predictions count too.
    if _same_numbers(model) and (divergence is None or divergence < GRADES[0].limit):
        return _EXACT
    if divergence is None:
        return None
    return next(grade for grade in GRADES if divergence < grade.limit or grade is GRADES[-1])


def _beaten_by(model: ModelResult, others: Sequence[ModelResult]) -> str | None:
    """The closest of the models that make this one pointless."""
    mine = _divergence(model)
    if mine is None:
        return None
    better = [
        (theirs, other.nbytes, other.name)
        for other in others
        if (theirs := _divergence(other)) is not None
        and (theirs, other.nbytes) != (mine, model.nbytes)
        and theirs <= mine
        and other.nbytes <= model.nbytes
    ]
    return min(better)[2] if better else None


def _advised(models: Sequence[ModelResult]) -> ModelResult | None:
    """The smallest model that stays close to the base; otherwise none."""
    close = [m for m in models if (kl := _divergence(m)) is not None and kl < _ADVISABLE]
    return min(close, key=lambda m: (m.nbytes, _divergence(m)), default=None)


def _cost(model: ModelResult, base: ModelResult) -> str:
    change = behaviour_change(model)
    parts = []
    if change is not None and model.behaviour is not None:
        before = base.behaviour.perplexity.value if base.behaviour else math.nan
        rise = change.perplexity_ratio
        grown = estimate(Estimate(rise.value - 1, rise.error), 100, PERCENT, sign=True)
        parts.append(
            f"Perplexity {grown}, {fixed(before, 2)} → {fixed(model.behaviour.perplexity.value, 2)}. "
            f"The likeliest next token stays the same at {percent(change.same_top.value)} of positions."
        )
    elif model.behaviour is not None:
        parts.append(
            f"Perplexity {estimate(model.behaviour.perplexity)}; not comparable with the base token by token."
        )
    if _same_numbers(model):
        parts.append("Every compared weight has the base's value.")
    elif change is None and model.weights is not None:
        error = model.weights.total
        parts.append(
            f"Weights are off by {percent(error.relative_rmse)} (root mean square), {fixed(error.sqnr_db, 1)} dB "
            "below the signal."
        )
    return " ".join(parts) or "Only its size could be compared."


def judge(report: CompareReport) -> Verdict:
    """Weigh every model's size against its cost."""
    models = sorted(report.models, key=lambda m: (m.nbytes, m.name))
    best = _advised(models)
    standings = tuple(
        Standing(
            model,
            _grade(model),
            _beaten_by(model, [m for m in models if m is not model]),
            model is best,
            _cost(model, report.base),
        )
        for model in models
    )
    headline, detail = _words(report, models, best)
    return Verdict(headline, detail, standings)


def _words(report: CompareReport, models: Sequence[ModelResult], best: ModelResult | None) -> tuple[str, str]:
    if not models:
        return f"Nothing to compare {report.base.name} with.", "Name more models, or formats to try."
    ran = [(kl, m.nbytes, m) for m in models if (kl := _divergence(m)) is not None]
    if not ran:
        smallest = models[0]
        return (
            f"{smallest.name} is the smallest, at {share(smallest.nbytes, report.base.nbytes)} of the base.",
            "Weights alone do not tell what a format costs in quality: compare again with a text (--text) "
            "to see what each does to predictions.",
        )
    closest = min(ran, key=lambda each: each[:2])[2]
    if best is None:
        return (
            f"None of these stays close to {report.base.name}.",
            f"{closest.name} comes closest, but is {_word(closest)}. {_size_words(closest, report.base)}.",
        )
    sentences = [f"{_size_words(best, report.base)}, and the smallest model that stays close to the base."]
    if _word(closest) != _word(best):
        at = share(closest.nbytes, report.base.nbytes)
        sentences.append(f"For less change: {closest.name} is {_word(closest)}, at {at}.")
    smallest = min(ran, key=lambda each: each[1])[2]
    if smallest.nbytes < best.nbytes:
        sentences.append(f"{smallest.name} is smaller still, but {_word(smallest)}.")
    return f"Ship {best.name}.", " ".join(sentences)


def _word(model: ModelResult) -> str:
    grade = _grade(model)
    assert grade is not None  # only of models that ran
    return grade.word


def _size_words(model: ModelResult, base: ModelResult) -> str:
    if model.nbytes < base.nbytes:
        return f"{share(model.nbytes, base.nbytes)} of the base's size ({times(base.nbytes, model.nbytes)} smaller)"
    return f"{share(model.nbytes, base.nbytes)} of the base's size"
