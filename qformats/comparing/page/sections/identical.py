"""What is identical: tensors that two models share, bit for bit."""

from __future__ import annotations

from qformats.comparing.page.markup import Html, el, join
from qformats.comparing.page.numbers import count
from qformats.comparing.page.sections.parts import NAMED
from qformats.comparing.page.tables import Column, Entry, table
from qformats.comparing.report import CompareReport

__all__ = ["identical"]


def identical(report: CompareReport) -> Html | None:
    """Pairs of models that share tensors, and which; ``None`` if none do."""
    pairs = [pair for pair in report.identical if pair.same_bytes or pair.same_values]
    if not pairs:
        return None
    columns = [
        Column("Model", "", numeric=False),
        Column("and", "", numeric=False),
        Column("In common", "Tensors that both have under the same name and in the same shape."),
        Column("Same bytes", "Of these, those with the same format and the same stored bytes."),
        Column("Same values", "Of these, those with other bytes for the same numbers."),
    ]
    rows = [
        [
            Entry(pair.first),
            Entry(pair.second),
            Entry(pair.common, pair.common),
            Entry(len(pair.same_bytes), len(pair.same_bytes)),
            Entry(len(pair.same_values), len(pair.same_values)),
        ]
        for pair in pairs
    ]
    lists = [
        el(
            "details",
            el("summary", f"{pair.first} and {pair.second}: {what}, {count(len(names), 'tensor')}"),
            el(
                "p",
                ", ".join(names[:NAMED]) + (" …" if len(names) > NAMED else ""),
                class_="names",
            ),
        )
        for pair in pairs
        for what, names in (("same bytes", pair.same_bytes), ("same values", pair.same_values))
        if names
    ]
    return join(
        table("Tensors that two models share, bit for bit", columns, rows, "identical-pairs"),
        el("details", el("summary", "Their names"), *lists, class_="fold"),
    )
