"""What the models predict: divergence, perplexity, and the tokens that changed most."""

from __future__ import annotations

from qformats.comparing.page.distribution import distribution
from qformats.comparing.page.markup import Html, el, join
from qformats.comparing.page.numbers import NONE, PERCENT, decimal, estimate, fixed, signed
from qformats.comparing.page.sections.parts import nothing
from qformats.comparing.page.tables import Column, Entry, table
from qformats.comparing.page.tokens import token_changes
from qformats.comparing.page.verdict import behaviour_change
from qformats.comparing.report import CompareReport

__all__ = ["behaviour", "tokens"]


def behaviour(report: CompareReport) -> Html | None:
    """How the models' predictions differ from the base's, or why that is not known; ``None`` if only tasks were run."""
    ran = [m for m in report.models if m.behaviour]
    if not ran:
        if report.text is None and report.tasks:
            return None
        if report.text is None:
            return nothing(
                "The models were not run, because no text was given. Compare again with a text (--text) to see what "
                "they predict."
            )
        return nothing("None of the models could be run on the text; the notes at the top say why.")
    intro = el(
        "p",
        "For every scored token, the next-token distribution of each model is compared with the base's. Their KL "
        "divergence is 0 where they agree; a mean hides that most tokens hardly change and a few change a lot.",
    )
    ridges = distribution(report)
    chart = None
    if ridges is not None:
        chart = el(
            "figure",
            el(
                "figcaption",
                "Tokens by KL divergence, on a logarithmic axis. The first step includes everything below it.",
            ),
            ridges,
        )
    return join(intro, chart, _percentiles(report), _perplexities(report))


def _percentiles(report: CompareReport) -> Html | None:
    changed = [(m, c) for m in report.models if (c := behaviour_change(m)) is not None]
    if not changed:
        return None
    columns = [
        Column("Model", "", numeric=False),
        Column("Mean KL", "Mean divergence in nats per token, with its standard error."),
        Column("Median", "Half of the tokens change less than this."),
        Column(
            "90 %",
            "One token in ten changes more than this; the next columns: one in 20, in 100 and in 1000.",
        ),
        Column("95 %", ""),
        Column("99 %", ""),
        Column("99.9 %", ""),
        Column("Largest", "Divergence of the token that changed most."),
        Column("Same top", "Share of positions where the likeliest next token is the same as the base's."),
        Column(
            "Δp, RMS",
            "Root mean square change of the probability of the actual next token, in percentage points.",
        ),
        Column(
            "Δp, mean",
            "Mean change of that probability: below 0, the model predicts the text less well than the base.",
        ),
        Column("Δp, 5 %", "One token in twenty loses more probability than this."),
        Column("Δp, 95 %", "One token in twenty gains more probability than this."),
    ]
    rows = []
    for m, c in changed:
        kl, p = c.kl.percentiles, c.probability
        row = [Entry(m.name), Entry(estimate(c.kl.mean), c.kl.mean.value)]
        row += [Entry(decimal(v), v) for v in (kl.median, kl.p90, kl.p95, kl.p99, kl.p99_9, kl.max)]
        row.append(Entry(estimate(c.same_top, 100, PERCENT), c.same_top.value))
        row.append(Entry(estimate(p.rms, 100, PERCENT), p.rms.value))
        row.append(Entry(estimate(p.mean, 100, PERCENT, sign=True), p.mean.value))
        row += [Entry(signed(v * 100) + PERCENT, v) for v in (p.percentiles.p5, p.percentiles.p95)]
        rows.append(row)
    return table("KL divergence and change of probability", columns, rows, "percentiles")


def _perplexities(report: CompareReport) -> Html:
    columns = [
        Column("Model", "", numeric=False),
        Column(
            "Perplexity",
            "exp of the mean negative log-likelihood: how many tokens the model hesitates between.",
        ),
        Column("Difference", "The model's minus the base's."),
        Column(
            "Ratio",
            "The model's over the base's. Its error is smaller than either's, because both saw the same text.",
        ),
        Column("ln ratio", "Logarithm of the ratio: nats per token by which the model is worse."),
        Column("Correlation", "Of the two models' log-likelihoods, token by token."),
        Column("Tokens", "Scored tokens."),
    ]
    rows = []
    for m in (report.base, *report.models):
        if m.behaviour is None:
            continue
        b, c = m.behaviour, m.behaviour.against
        row = [Entry(m.name), Entry(estimate(b.perplexity), b.perplexity.value)]
        if c is None:
            row += [Entry(NONE)] * 4
        else:
            row += [
                Entry(estimate(c.perplexity_difference, sign=True), c.perplexity_difference.value),
                Entry(estimate(c.perplexity_ratio), c.perplexity_ratio.value),
                Entry(estimate(c.log_ratio, sign=True), c.log_ratio.value),
                Entry(fixed(c.correlation * 100, 2) + PERCENT, c.correlation),
            ]
        rows.append([*row, Entry(f"{b.tokens:,}", b.tokens)])
    return table("Perplexity", columns, rows, "perplexities")


def tokens(report: CompareReport) -> Html | None:
    """The tokens that changed most, model by model; ``None`` if no model was run against the base."""
    changed = [(m, c) for m in report.models if (c := behaviour_change(m)) is not None and c.worst]
    if not changed:
        return None
    intro = el(
        "p",
        "Where each model departs furthest from the base: the text before, the actual next token ",
        el("mark", "marked"),
        ", and what each model expected. ␣ is a space, ⏎ a line end. One such place in thousands is normal; the "
        "same kind of place again and again is a warning.",
    )
    # Worst model first, and open: it is the most instructive.
    changed.sort(key=lambda each: -each[1].worst[0].kl)
    folds = [
        el(
            "details",
            el(
                "summary",
                el("h3", m.name),
                el("span", f"up to {decimal(c.worst[0].kl)} nats", class_="faint"),
            ),
            token_changes(c.worst),
            class_="fold",
            open=index == 0,
        )
        for index, (m, c) in enumerate(changed)
    ]
    return join(intro, *folds)
