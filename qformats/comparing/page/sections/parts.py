"""What several sections share."""

from __future__ import annotations

from qformats.comparing.page.markup import Html, el

__all__ = ["ERROR", "NAMED", "nothing"]

NAMED = 400
"""Tensors of a model that the page lists; the report's JSON has them all."""
ERROR = (
    "Relative error of all weights: root of their squared changes' sum over the sum of the base's squares."
)


def nothing(why: str) -> Html:
    """What a section without numbers shows."""
    return el("p", why, class_="nothing")
