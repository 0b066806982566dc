"""How objects show themselves in a console and in a notebook: a line of facts, and a small table without colours."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

__all__ = ["Shown", "as_html", "as_line", "bits", "dims", "nbytes", "size"]

_LONGEST = 80
"""Characters of a fact in a table: whatever a file holds stays small."""
_ROWS = 12
"""Rows of a table at most."""


class Shown:
    """An object that shows facts about itself instead of its content.

    A class that derives from it says which; its ``__repr__`` and ``_repr_html_`` follow.
    """

    def _shown_facts(self) -> Mapping[str, str]:
        """What to show, by name; the first value stands for the object."""
        raise NotImplementedError

    def _shown_rows(self) -> Sequence[Sequence[str]]:
        """A table below the facts in a notebook, its headings first; none by default."""
        return ()

    def __repr__(self) -> str:
        return as_line(type(self).__name__, self._shown_facts())

    def _repr_html_(self) -> str:
        return as_html(type(self).__name__, self._shown_facts(), self._shown_rows())


def dims(shape: Sequence[int]) -> str:
    """A shape as it is written.

    >>> dims((64, 256)), dims((256,)), dims(())
    ('64 x 256', '256', 'scalar')
    """
    return " x ".join(map(str, shape)) or "scalar"


def nbytes(count: int) -> str:
    """A number of bytes in full."""
    return f"{count:,} byte{'' if count == 1 else 's'}"


def size(nbytes: float) -> str:
    """Bytes for people: ``98.4 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


def bits(count: int, weights: int) -> str:
    """Stored bits per weight; empty without weights."""
    return f"{count * 8 / weights:.4g} bits per weight" if weights else ""


def as_line(kind: str, facts: Mapping[str, str]) -> str:
    """Facts in one line, as ``repr`` gives it.

    >>> as_line("Thing", {"format": "gguf:q4_0", "note": "", "size": "18 bytes"})
    '<Thing gguf:q4_0, 18 bytes>'
    """
    return f"<{kind} {', '.join(_plain(value) for value in facts.values() if value)}>"


def as_html(kind: str, facts: Mapping[str, str], rows: Sequence[Sequence[str]] = ()) -> str:
    """Facts as a table for a notebook, and a second one with headings.

    Its colours are the notebook's own, so that it suits dark ones; everything is escaped.
    """
    lines = [
        f"<tr><th style='text-align:left'>{_cell(name)}</th><td style='text-align:left'>{_cell(value)}</td></tr>"
        for name, value in facts.items()
        if value
    ]
    found = f"<div><strong>{_cell(kind)}</strong><table>{''.join(lines)}</table>"
    if rows:
        heads, *body = rows
        more = len(body) - _ROWS
        found += (
            "<table><thead><tr>"
            + "".join(f"<th>{_cell(head)}</th>" for head in heads)
            + "</tr></thead><tbody>"
        )
        for row in body[:_ROWS]:
            found += "<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>"
        found += "</tbody></table>" + (f"<p>and {more:,} more</p>" if more > 0 else "")
    return found + "</div>"


def _plain(value: str) -> str:
    """One line, without what a terminal would act on."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in value)


def _cell(value: str) -> str:
    text = _plain(value)
    half = _LONGEST // 2
    return html.escape(text if len(text) <= _LONGEST else f"{text[:half]}…{text[-half:]}")
