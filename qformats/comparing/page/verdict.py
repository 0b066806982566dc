"""What to ship: the trade-off between size and quality, in words.

The words are based on the mean Kullback-Leibler divergence from the base if the models were run, and on nothing if they
were not: an error of the weights does not tell what it does to predictions. What the text does not prove is not said;
:mod:`qformats.comparing.evidence` says what it proves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qformats.comparing.evidence import (
    LIMIT,
    Closeness,
    Evidence,
    closer,
    evidence,
    interval,
    more_text,
    shortage,
)
from qformats.comparing.page.numbers import PERCENT, error_percent, estimate, fixed, percent, share, times
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
assert GRADES[2].limit == LIMIT
_EXACT = Grade(0, "the same numbers", "lossless")


@dataclass(frozen=True)
class Standing:
    """One model among the others.

    Attributes
    ----------
    model : ModelResult
        The model.
    grade : Grade or None
        Of the worst divergence that the text leaves possible; ``None`` where that is not known.
    word : str
        The grade in words; two of them where the text does not tell which.
    evidence : Evidence or None
        What the text proves; ``None`` where the model was not run against the base, or the text is too short.
    beaten_by : str or None
        Name of a model that is no larger, and certainly closer to the base or the same at a smaller size.
    advised : bool
        Whether it is the one to ship.
    cost : str
        What it costs, in a sentence or two.
    """

    model: ModelResult
    grade: Grade | None
    word: str
    evidence: Evidence | None
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
    """Relative error of all weights, if they were compared and are finite."""
    cost = model.weights.total.relative_rmse if model.weights else None
    return None if cost is None or math.isnan(cost) else cost


def _divergence(model: ModelResult) -> float | None:
    change = behaviour_change(model)
    # NaN has no order; what diverges without bound is worst.
    return None if change is None or math.isnan(change.kl.mean.value) else change.kl.mean.value


def _evidence(model: ModelResult) -> Evidence | None:
    change = behaviour_change(model)
    return None if change is None or math.isnan(change.kl.mean.value) else evidence(change)


def _same_numbers(model: ModelResult) -> bool:
    return model.weights is not None and model.weights.total.max_error == 0


def _grade(model: ModelResult, known: Evidence | None) -> tuple[Grade | None, str]:
    """Grade of a model at worst, and in words what it may be."""
    divergence = _divergence(model)
    # Equal tensors prove nothing if the model has others: predictions count too.
    if _same_numbers(model) and (divergence is None or divergence < GRADES[0].limit):
        return _EXACT, _EXACT.word
    if known is None:
        return None, ""
    best, worst = (
        next(grade for grade in GRADES if bound < grade.limit or grade is GRADES[-1])
        for bound in (known.kl.low, known.kl.high)
    )
    return worst, worst.word if best is worst else f"between {best.word} and {worst.word}"


def _beaten_by(model: ModelResult, others: Sequence[ModelResult]) -> str | None:
    """The closest of the models that make this one pointless."""
    mine = behaviour_change(model)
    if mine is None or _divergence(model) is None:
        return None
    better = [
        (divergence, other.nbytes, other.name)
        for other in others
        if (theirs := behaviour_change(other)) is not None
        and (divergence := _divergence(other)) is not None
        and other.nbytes <= model.nbytes
        and (closer(theirs, mine) or (other.nbytes < model.nbytes and theirs.windows == mine.windows))
    ]
    return min(better)[2] if better else None


def _no_difference(change: BehaviourChange) -> str:
    """A remark if the text proves no change of perplexity."""
    loss = interval([each.log_ratio for each in change.windows])
    return " (no difference that this text proves)" if loss.low <= 0 <= loss.high else ""


def _cost(model: ModelResult, base: ModelResult) -> str:
    change = behaviour_change(model)
    parts = []
    if change is not None and model.behaviour is not None:
        before = base.behaviour.perplexity.value if base.behaviour else math.nan
        rise = change.perplexity_ratio
        grown = estimate(Estimate(rise.value - 1, rise.error), 100, PERCENT, sign=True)
        same = _no_difference(change)
        parts.append(
            f"Perplexity {grown}{same}, {fixed(before, 2)} → {fixed(model.behaviour.perplexity.value, 2)}. "
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
            f"The relative error of its weights is {error_percent(error.relative_rmse)}, {fixed(error.sqnr_db, 1)} dB "
            "below the signal."
        )
    return " ".join(parts) or "Only its size could be compared."


def judge(report: CompareReport) -> Verdict:
    """Weigh every model's size against its cost."""
    models = sorted(report.models, key=lambda m: (m.nbytes, m.name))
    missing = shortage(report.text) if report.text else ""
    known = {model.name: None if missing else _evidence(model) for model in models}
    close = [m for m in models if (e := known[m.name]) and e.closeness is Closeness.CLOSE]
    best = min(close, key=lambda m: (m.nbytes, _divergence(m)), default=None)
    standings = tuple(
        Standing(
            model,
            *_grade(model, known[model.name]),
            known[model.name],
            None if missing else _beaten_by(model, [m for m in models if m is not model]),
            model is best,
            _cost(model, report.base),
        )
        for model in models
    )
    headline, detail = _words(report, standings, missing)
    return Verdict(headline, detail, standings)


def _words(report: CompareReport, standings: Sequence[Standing], missing: str) -> tuple[str, str]:
    base = report.base
    if not standings:
        return f"Nothing to compare {base.name} with.", "Name more models, or formats to try."
    if not any(behaviour_change(s.model) for s in standings):
        smallest = standings[0].model
        return (
            f"{smallest.name} is the smallest, at {share(smallest.nbytes, base.nbytes)} of the base.",
            "Weights alone do not tell what a format costs in quality: compare again with a text (--text) "
            "to see what each does to predictions.",
        )
    ran = [s for s in standings if s.evidence]
    if missing or not ran:
        return "No verdict.", missing or "No model's divergence from the base is a number."
    closest = min(ran, key=lambda s: (_divergence(s.model), s.model.nbytes))
    best = next((s for s in ran if s.advised), None)
    open_ = [
        s
        for s in ran
        if s.evidence
        and s.evidence.closeness is Closeness.UNDECIDED
        and (best is None or s.model.nbytes < best.model.nbytes)
    ]
    if best is None:
        if open_:
            return "No verdict yet.", f"{_undecided(open_, base)} {_more(open_, report)}"
        return (
            f"None of these stays close to {base.name}.",
            f"{closest.model.name} comes closest, but {_apart(closest)}. {_size_words(closest.model, base)}.",
        )
    sentences = [f"{_size_words(best.model, base)}, and the smallest model that stays close to the base."]
    if open_:
        sentences = [f"{_size_words(best.model, base)}. {_undecided(open_, base)} {_more(open_, report)}"]
    if closest.word != best.word:
        at = share(closest.model.nbytes, base.nbytes)
        sentences.append(f"For less change: {closest.model.name} is {closest.word}, at {at}.")
    smaller = [s for s in ran if s.model.nbytes < best.model.nbytes and s not in open_]
    if smaller:
        sentences.append(f"{smaller[0].model.name} is smaller still, but {_apart(smaller[0])}.")
    headline = f"Ship {best.model.name}."
    if open_:
        headline = f"{best.model.name} stays close to the base; whether a smaller one does is open."
    return headline, " ".join(sentences)


def _apart(standing: Standing) -> str:
    """Why a model does not stay close: mostly its divergence, sometimes only what it loses on the text."""
    assert standing.evidence is not None  # only of models that ran
    if standing.evidence.kl.low >= LIMIT:
        return f"is {standing.word}"
    return f"its perplexity rises by {percent(math.expm1(standing.evidence.loss.mean))}"


def _undecided(standings: Sequence[Standing], base: ModelResult) -> str:
    names = [s.model.name for s in standings]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"The text does not tell whether {listed} {'stays' if len(names) == 1 else 'stay'} close to {base.name}."


def _more(standings: Sequence[Standing], report: CompareReport) -> str:
    """How much more text would decide it for all of them."""
    missing = [s.evidence.missing for s in standings if s.evidence]
    wanted = [m for m in missing if m is not None]
    if report.text is None or not wanted:
        return "No reasonable amount of text would: it lies on the limit."
    return more_text(max(1, max(wanted)), report.text)


def _size_words(model: ModelResult, base: ModelResult) -> str:
    if model.nbytes < base.nbytes:
        return f"{share(model.nbytes, base.nbytes)} of the base's size ({times(base.nbytes, model.nbytes)} smaller)"
    return f"{share(model.nbytes, base.nbytes)} of the base's size"
