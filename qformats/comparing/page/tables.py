"""Tables whose columns sort: each cell carries its value beside its text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qformats.comparing.page.markup import Html, Node, el

__all__ = ["Column", "Entry", "table"]


@dataclass(frozen=True)
class Column:
    """A column: its heading, what it means in a sentence, and whether it holds numbers."""

    name: str
    meaning: str
    numeric: bool = True


@dataclass(frozen=True)
class Entry:
    """A cell: its text, and the number that it sorts by (``None`` sorts last; words sort by their text)."""

    shown: Node
    value: float | None = None


def table(caption: str, columns: Sequence[Column], rows: Sequence[Sequence[Entry]], key: str) -> Html:
    """A table in a box that scrolls by itself, and the meanings of its columns.

    Parameters
    ----------
    caption : str
        What the table holds.
    columns : sequence of Column
        The first names the row.
    rows : sequence of sequence of Entry
        In the order in which they are shown first.
    key : str
        Unlike that of every other table in the page.

    Returns
    -------
    Html
        Without the script, the table only loses sorting.
    """
    heads = [el("th", column.name, scope="col", data_sort=_kind(column)) for column in columns]
    body = [
        el(
            "tr",
            *(
                _cell(entry, column, index == 0)
                for index, (entry, column) in enumerate(zip(row, columns, strict=True))
            ),
        )
        for row in rows
    ]
    drawn = el(
        "table",
        el("caption", caption, id=f"{key}-caption"),
        el("thead", el("tr", *heads)),
        el("tbody", *body),
        id=key,
        class_="sortable",
    )
    # A box that scrolls must be reachable by keyboard.
    box = el("div", drawn, class_="scrolls", role="region", tabindex="0", aria_labelledby=f"{key}-caption")
    terms = [el("div", el("dt", c.name), el("dd", c.meaning)) for c in columns if c.meaning]
    meanings = el("details", el("summary", "What the columns mean"), el("dl", *terms, class_="terms"))
    return el("div", box, meanings if terms else None, class_="table")


def _kind(column: Column) -> str:
    return "number" if column.numeric else "text"


def _cell(entry: Entry, column: Column, first: bool) -> Html:
    if not column.numeric:
        return el("th" if first else "td", entry.shown, scope="row" if first else None)
    return el("td", entry.shown, data_v=_value(entry.value))


def _value(value: float | None) -> str:
    """The number as JavaScript reads it; nothing where there is none."""
    if value is None or math.isnan(value):
        return ""
    return f"{value:.9g}".replace("inf", "Infinity")
