"""Size against quality: the chart, and the table of all models."""

from __future__ import annotations

from qformats.comparing.page.markup import Html, el, join
from qformats.comparing.page.numbers import NONE, PERCENT, error_percent, estimate, fixed, size
from qformats.comparing.page.scatter import families, marker, metrics, scatter
from qformats.comparing.page.sections.parts import ERROR, nothing
from qformats.comparing.page.tables import Column, Entry, table
from qformats.comparing.page.verdict import behaviour_change
from qformats.comparing.report import CompareReport

__all__ = ["overview"]


def overview(report: CompareReport) -> Html:
    """The chart, for each measure that there is, and the table."""
    choices = metrics(report)
    if not report.models:
        return _table(report)
    if not choices:
        return join(
            nothing("Neither predictions nor weights of these models could be compared."), _table(report)
        )
    radios = [
        el(
            "label",
            el("input", type="radio", name="metric", value=metric.key, checked=index == 0),
            el("span", metric.name),
        )
        for index, metric in enumerate(choices)
    ]
    picker = (
        el("fieldset", el("legend", "Against size:"), *radios, class_="picker") if len(choices) > 1 else None
    )
    charts = [el("div", scatter(report, metric), class_=f"chart chart-{metric.key}") for metric in choices]
    keys = [
        el("span", el("svg", marker(style.style, 8, 8, 5), width="16", height="16", aria_hidden="true"), name)
        for name, style in families(report).items()
    ]
    keys.append(
        el("span", el("svg", marker(None, 8, 8, 5), width="16", height="16", aria_hidden="true"), "the base")
    )
    dashes = el("line", class_="frontier", x1="0", y1="8", x2="26", y2="8")
    keys.append(
        el("span", el("svg", dashes, width="26", height="16", aria_hidden="true"), "best at its size")
    )
    note = "Further left is smaller, further down is closer to the base. Another model beats hollow marks in both."
    if report.text is not None:
        note += " Whiskers are one standard error of the difference from the base."
    return join(
        el("div", picker, *charts, el("p", *keys, class_="keys"), class_="charts"),
        el("p", note, class_="small"),
        _table(report),
    )


def _table(report: CompareReport) -> Html:
    everyone = (report.base, *report.models)
    columns = [Column("Model", "", numeric=False)]
    rows = [[Entry(m.name)] for m in everyone]
    # Tried formats are named after what they are.
    if any(m.format not in m.name for m in report.models):
        meaning = "Family and variant of nine tenths of the quantized weights; “mixed” where there is none."
        columns.append(Column("Format", meaning, numeric=False))
        for m, row in zip(everyone, rows, strict=True):
            row.append(Entry(m.format))
    columns += [
        Column("Size", "Stored bytes of all tensors, in powers of 1000."),
        Column("Bits", "Stored bits of all tensors divided by their number of weights."),
    ]
    for m, row in zip(everyone, rows, strict=True):
        row += [Entry(size(m.nbytes), m.nbytes), Entry(fixed(m.bits_per_weight, 2), m.bits_per_weight)]
    if any(m.behaviour for m in everyone):
        columns += [
            Column(
                "Perplexity",
                "How many tokens the model hesitates between, on average; lower is better. ± is one standard error.",
            ),
            Column(
                "KL, mean",
                "Mean Kullback-Leibler divergence of predictions from the base's in nats per token; 0 is no change.",
            ),
            Column(
                "Same top", "Share of positions where the likeliest next token is the same as the base's."
            ),
        ]
        for m, row in zip(everyone, rows, strict=True):
            change = behaviour_change(m)
            row += [
                Entry(estimate(m.behaviour.perplexity), m.behaviour.perplexity.value)
                if m.behaviour
                else Entry(NONE),
                Entry(estimate(change.kl.mean), change.kl.mean.value) if change else Entry(NONE),
                Entry(estimate(change.same_top, 100, PERCENT), change.same_top.value)
                if change
                else Entry(NONE),
            ]
    if any(m.weights for m in everyone):
        columns.append(Column("Error", ERROR))
        for m, row in zip(everyone, rows, strict=True):
            off = m.weights.total.relative_rmse if m.weights else None
            row.append(Entry(NONE if off is None else error_percent(off), off))
    return table("All models", columns, rows, "overview")
