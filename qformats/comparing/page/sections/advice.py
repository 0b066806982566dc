"""Which should I ship? Every model, its size, and what it costs."""

from __future__ import annotations

from qformats.comparing.evidence import LIMIT
from qformats.comparing.page.markup import Html, el, join
from qformats.comparing.page.numbers import estimate, fixed, share, size
from qformats.comparing.page.verdict import GRADES, Standing, behaviour_change, judge
from qformats.comparing.report import CompareReport, ModelResult

__all__ = ["advice"]


def advice(report: CompareReport) -> Html:
    """The verdict, a line for each model, and what is to be known about all of it."""
    verdict = judge(report)
    base = report.base
    largest = max(m.nbytes for m in (base, *report.models)) or 1
    rows = [_standing(standing, base, largest) for standing in verdict.standings]
    perplexity = f", perplexity {estimate(base.behaviour.perplexity)}" if base.behaviour else ""
    rows.append(
        el(
            "li",
            el("div", el("h3", base.name), el("span", "the base", class_="chip"), class_="who"),
            _bar(base.nbytes, largest, "base"),
            el(
                "p",
                f"{base.format}, {fixed(base.bits_per_weight, 2)} bits per weight{perplexity}.",
                _notes(base),
                class_="cost",
            ),
            class_="standing base",
        )
    )
    words = [f"{grade.word} below {grade.limit:g}" for grade in GRADES[:-1]]
    legend = None
    if any(standing.grade and behaviour_change(standing.model) for standing in verdict.standings):
        legend = el(
            "p",
            "The words follow the mean KL divergence from the base, in nats per token: ",
            f"{', '.join(words)}, {GRADES[-1].word} above. A model is recommended if the text proves, with "
            f"95 % confidence, that it is at least {GRADES[2].word}, and that it loses less than {LIMIT:g} nats per "
            "token more than the base. These are rules of thumb: only your own tasks tell what your users notice.",
            class_="small",
        )
    # That the text is too short is said above.
    notes = [note for note in report.notes if note != verdict.detail]
    return join(
        el("p", verdict.headline, class_="headline"),
        el("p", verdict.detail, class_="detail"),
        el("ol", *rows, class_="standings"),
        legend,
        el("ul", *(el("li", note) for note in notes), class_="nothing") if notes else None,
    )


def _standing(standing: Standing, base: ModelResult, largest: int) -> Html:
    model, grade = standing.model, standing.grade
    chips = [
        el("span", "recommended", class_="chip advised") if standing.advised else None,
        el("span", standing.word, class_=f"chip {grade.key}") if grade else None,
    ]
    beaten = None
    if standing.beaten_by:
        beaten = el("span", f" {standing.beaten_by} is no larger and closer to the base.", class_="beaten")
    what = f"{size(model.nbytes)}, {share(model.nbytes, base.nbytes)}"
    return el(
        "li",
        el("div", el("h3", model.name), *chips, class_="who"),
        _bar(model.nbytes, largest, grade.key if grade else "", what),
        el("p", standing.cost, beaten, _notes(model), class_="cost"),
        class_="standing advised" if standing.advised else "standing",
    )


def _notes(model: ModelResult) -> Html | None:
    return el("span", " ", " ".join(model.notes), class_="beaten") if model.notes else None


def _bar(nbytes: int, largest: int, class_: str, what: str | None = None) -> Html:
    width = f"{100 * nbytes / largest:.1f}%"
    bar = el("svg", el("rect", width=width, height="100%", class_=class_), class_="bar", aria_hidden="true")
    return el("div", bar, el("span", what or size(nbytes)), class_="how-large")
