"""How the divergence is spread over tokens, one row per model, all on one axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qformats.comparing.page.markup import Html, el, join
from qformats.comparing.page.numbers import decimal, power
from qformats.comparing.page.scatter import families, family
from qformats.comparing.page.verdict import behaviour_change
from qformats.comparing.report import BehaviourChange, CompareReport, Histogram, ModelResult

__all__ = ["distribution"]

_HIGH = 100.0
"""Height of a row in the units of its drawing, which is stretched to the row."""


def distribution(report: CompareReport) -> Html | None:
    """Draw a histogram for each model that was run against the base; ``None`` if none was."""
    rows = [(m, change) for m in report.models if (change := behaviour_change(m)) is not None]
    rows = [(m, change) for m, change in rows if len(change.kl_histogram.edges) > 1]
    if not rows:
        return None
    # Closest to the base first: the humps then wander off to the right.
    rows.sort(key=lambda row: row[1].kl.mean.value)
    low, high = _range([change.kl_histogram for _, change in rows])
    styles = families(report)
    drawn = [_row(m, change, styles[family(m)].style, low, high) for m, change in rows]
    return el("div", *drawn, _axis(low, high), class_="ridges")


def _steps(histogram: Histogram) -> list[tuple[float, float, int]]:
    """Logarithms of the bounds of each bin, and its tokens."""
    logs = [math.log10(edge) for edge in histogram.edges]
    return list(zip(logs[:-1], logs[1:], histogram.counts, strict=True))


def _range(histograms: Sequence[Histogram]) -> tuple[float, float]:
    """Logarithms of the bounds between which any model has tokens."""
    steps = [step for histogram in histograms for step in _steps(histogram)]
    filled = [step for step in steps if step[2]] or steps
    return min(step[0] for step in filled), max(step[1] for step in filled)


def _place(value: float, low: float, high: float) -> str:
    """Where a divergence lies on the axis, as a percentage of its length."""
    return _share(math.log10(value) if value > 0 else low, low, high)


def _share(log: float, low: float, high: float) -> str:
    return f"{100 * min(1.0, max(0.0, (log - low) / (high - low))):.2f}"


def _row(model: ModelResult, change: BehaviourChange, style: int, low: float, high: float) -> Html:
    kl = change.kl
    marks = (("median", kl.percentiles.median), ("mean", kl.mean.value), ("99 %", kl.percentiles.p99))
    lines = [
        el("line", class_=f"at {key}", x1=f"{place}%", x2=f"{place}%", y1="0", y2="100%")
        for key, (_, value) in zip(("median", "mean", "p99"), marks, strict=True)
        for place in (_place(value, low, high),)
        if math.isfinite(value)
    ]
    said = ", ".join(f"{name} {decimal(value)}" for name, value in marks)
    shape = el(
        "svg",
        el("path", class_=f"shape f{style}", d=_outline(change.kl_histogram, low, high)),
        viewBox=f"0 0 100 {_HIGH:g}",
        preserveAspectRatio="none",
        width="100%",
        height="100%",
    )
    facts = [
        join(el("dt", name, class_=key), el("dd", decimal(value)))
        for key, (name, value) in zip(("median", "mean", "p99"), marks, strict=True)
    ]
    return el(
        "div",
        el("div", el("h3", model.name), el("dl", *facts), class_="ridge-name"),
        el(
            "svg",
            el("title", f"Tokens by KL divergence, {model.name}: {said} nats"),
            shape,
            *lines,
            class_="ridge",
            role="img",
        ),
        class_="ridge-row",
    )


def _outline(histogram: Histogram, low: float, high: float) -> str:
    """Path of the steps, scaled to the largest."""
    top = max(histogram.counts) or 1
    steps = [f"M0 {_HIGH:g}"]
    for lower, upper, count in _steps(histogram):
        if low - 1e-9 < lower and upper < high + 1e-9:
            y = _HIGH * (1 - 0.94 * count / top)
            steps.append(f"H{_share(lower, low, high)}V{y:.1f}H{_share(upper, low, high)}")
    return "".join([*steps, f"V{_HIGH:g}Z"])


def _axis(low: float, high: float) -> Html:
    decades = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
    every = max(1, math.ceil(len(decades) / 8))
    marks = []
    for exponent in decades[::every]:
        share = (exponent - low) / (high - low)
        anchor = "start" if share < 0.03 else "end" if share > 0.97 else "middle"
        x = f"{100 * share:.2f}%"
        marks.append(el("line", class_="axis", x1=x, x2=x, y1="0", y2="6"))
        words = f"{10**exponent:g}" if -3 <= exponent <= 2 else power(exponent)
        marks.append(el("text", words, class_="tick", x=x, y="20", text_anchor=anchor))
    rule = el("line", class_="axis", x1="0", x2="100%", y1="0", y2="0")
    return el(
        "div",
        el("p", "nats per token →", class_="axis-name"),
        el("svg", rule, *marks, class_="ridge-axis", aria_hidden="true"),
        class_="ridge-row",
    )
