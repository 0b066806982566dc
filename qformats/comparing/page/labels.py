"""Where to write the names of points so that none covers another."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Box", "Label", "Spot", "place", "shorten", "width"]

_GAP = 3.0
"""Pixels between a point and its name."""


@dataclass(frozen=True)
class Box:
    """A rectangle, pixels; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Area that both cover."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, wide) * max(0.0, high)

    def outside(self, frame: Box) -> float:
        """Area outside a frame."""
        return (self.right - self.left) * (self.bottom - self.top) - self.overlap(frame)


@dataclass(frozen=True)
class Spot:
    """A point with a name; `radius` is how much room its mark takes."""

    x: float
    y: float
    radius: float
    name: str


@dataclass(frozen=True)
class Label:
    """Where a name goes: its box, and whether a line must lead to it."""

    box: Box
    led: bool


def width(text: str, font: float) -> float:
    """Pixels that a text takes at most, for the fonts of a page that brings none along."""
    units = sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.62 for c in text)
    return units * font


def shorten(text: str, font: float, room: float) -> str:
    """The text, without its middle if it is too wide: both ends of a file name matter."""
    if width(text, font) <= room:
        return text
    keep = len(text) - 1
    while keep > 2 and width(text[:keep], font) + font > room:
        keep -= 1
    head = keep // 2
    return f"{text[:head]}…{text[len(text) - (keep - head) :]}"


def place(spots: Sequence[Spot], font: float, frame: Box) -> list[Label]:
    """Find a place for each name: beside its point where there is room, else farther away with a line.

    Parameters
    ----------
    spots : sequence of Spot
        The points, in their order of importance.
    font : float
        Size of the letters, pixels.
    frame : Box
        What no name should leave.

    Returns
    -------
    list of Label
        In the order of `spots`.
    """
    marks = [Box(s.x - s.radius, s.y - s.radius, s.x + s.radius, s.y + s.radius) for s in spots]
    labels: list[Label] = []
    for spot in spots:
        wide, high = width(spot.name, font), font * 1.25
        best, least = None, float("inf")
        for index, (box, led) in enumerate(_candidates(spot, wide, high)):
            taken = sum(box.overlap(other.box) for other in labels) + sum(box.overlap(mark) for mark in marks)
            # Earlier candidates are nicer: a later one must be better by more than nothing.
            price = taken + 2 * box.outside(frame) + index * 0.1
            if price < least:
                best, least = Label(box, led), price
        assert best is not None  # there are always candidates
        labels.append(best)
    return labels


def _candidates(spot: Spot, wide: float, high: float) -> list[tuple[Box, bool]]:
    near = spot.radius + _GAP
    found = []
    for led, distance in ((False, 0.0), (True, 16.0), (True, 34.0), (True, 54.0)):
        for across, down in ((1, 0), (-1, 0), (1, -1), (1, 1), (-1, -1), (-1, 1), (0, -1), (0, 1)):
            if led and down == 0:
                continue
            shift = (near + distance / 3) if led else near
            left = {1: spot.x + shift, -1: spot.x - shift - wide, 0: spot.x - wide / 2}[across]
            lift = distance + (high / 2 if across else near + high / 2)
            middle = spot.y + down * lift
            found.append((Box(left, middle - high / 2, left + wide, middle + high / 2), led))
    return found
