"""What several sections share."""

from __future__ import annotations

from qformats.comparing.page.markup import Html, el

__all__ = ["NAMED", "OFF_BY", "nothing"]

NAMED = 400
"""Tensors of a model that the page lists; the report's JSON has them all."""
OFF_BY = "Root mean square error of all weights, relative to the base's root mean square."


def nothing(why: str) -> Html:
    """What a section without numbers shows."""
    return el("p", why, class_="nothing")
