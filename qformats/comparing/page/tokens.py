"""The tokens whose predictions changed most, each in its text."""

from __future__ import annotations

from collections.abc import Sequence

from qformats.comparing.page.markup import Html, el, join
from qformats.comparing.page.numbers import decimal, percent
from qformats.comparing.report import TokenChance, TokenChange

__all__ = ["token_changes", "visible"]

_SHOWN = 4
"""Tokens that are shown at once; the rest unfolds."""


def visible(token: str) -> str:
    """A token with its blanks and line ends marked: they are what many tokens differ in."""
    return token.replace("\r", "␍").replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣") or "∅"


def token_changes(changes: Sequence[TokenChange]) -> Html:
    """List tokens, the largest change first."""
    first, rest = changes[:_SHOWN], changes[_SHOWN:]
    more = None
    if rest:
        summary = el("summary", f"{len(rest)} more")
        more = el("details", summary, el("ol", *map(_item, rest), class_="changes", start=_SHOWN + 1))
    return join(el("ol", *map(_item, first), class_="changes"), more)


def _item(change: TokenChange) -> Html:
    before = change.before.replace("\r", "").replace("\n", " ⏎ ")
    quote = el(
        "p", el("bdi", before), el("mark", el("bdi", visible(change.token))), class_="context", dir="auto"
    )
    facts = el(
        "p",
        el("b", f"{decimal(change.kl)} nats"),
        f" · the actual token had {percent(change.p_base)} before and has {percent(change.p_model)} now",
        el("span", f" · window {change.window}, position {change.position}", class_="faint"),
        class_="facts",
    )
    tops = el(
        "div",
        _tops("The base expects", change.top_base, change.token),
        _tops("This model expects", change.top_model, change.token),
        class_="tops",
    )
    return el("li", quote, facts, tops)


def _tops(title: str, chances: Sequence[TokenChance], token: str) -> Html:
    rows = [
        el(
            "li",
            el("code", el("bdi", visible(chance.text)), class_="really" if chance.text == token else None),
            el(
                "svg",
                el("rect", width=f"{100 * max(0.0, min(1.0, chance.probability)):.1f}%", height="100%"),
                class_="chance",
                aria_hidden="true",
            ),
            el("span", percent(chance.probability, 2), class_="number"),
        )
        for chance in chances
    ]
    return el("div", el("h4", title), el("ol", *rows))
