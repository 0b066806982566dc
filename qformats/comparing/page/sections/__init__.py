"""The parts of the page, from a report's numbers; a part that has none says why, or is left out."""

from __future__ import annotations

from dataclasses import dataclass

from qformats.comparing.page.markup import Html
from qformats.comparing.page.sections.advice import advice
from qformats.comparing.page.sections.behaviour import behaviour, tokens
from qformats.comparing.page.sections.identical import identical
from qformats.comparing.page.sections.machine import method, speed
from qformats.comparing.page.sections.overview import overview
from qformats.comparing.page.sections.tasks import tasks
from qformats.comparing.page.sections.weights import weights
from qformats.comparing.report import CompareReport

__all__ = ["Section", "sections"]


@dataclass(frozen=True)
class Section:
    """A part of the page: its anchor, its heading, and what it holds."""

    key: str
    title: str
    body: Html


def sections(report: CompareReport) -> list[Section]:
    """Every part that this report has something to say in."""
    possible = [
        ("verdict", "Which should I ship?", advice),
        ("size", "Size against quality", overview),
        ("behaviour", "What the models predict", behaviour),
        ("tokens", "Tokens that changed most", tokens),
        ("tasks", "Published tests", tasks),
        ("weights", "Where the weights are off", weights),
        ("identical", "What is identical", identical),
        ("speed", "Speed and memory", speed),
        ("method", "How this was measured", method),
    ]
    drawn = [(key, title, draw(report)) for key, title, draw in possible]
    return [Section(key, title, body) for key, title, body in drawn if body]
