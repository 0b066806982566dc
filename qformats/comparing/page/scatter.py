"""The chart of size against quality."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qformats.comparing.page.axes import Scale, spread
from qformats.comparing.page.labels import Box, Label, Spot, place, shorten
from qformats.comparing.page.markup import Html, el, join
from qformats.comparing.page.numbers import decimal, error_percent, fixed, size, tick
from qformats.comparing.page.verdict import behaviour_change, weight_cost
from qformats.comparing.report import CompareReport, Estimate, ModelResult

__all__ = ["Family", "Metric", "families", "marker", "metrics", "scatter"]

_SHAPES = 6
"""Marks and colours that differ; later families share the last."""


@dataclass(frozen=True)
class Metric:
    """A measure to plot against size.

    `measure` gives a model's value and its error, or ``None``; `by_itself` is the base's where nothing measures it.
    """

    key: str
    name: str
    axis: str
    log: bool
    by_itself: float | None
    measure: Callable[[ModelResult], Estimate | None]
    write: Callable[[float], str]
    mark: Callable[[float], str]


@dataclass(frozen=True)
class Family:
    """Formats that share a mark and a colour: number of the style, and name."""

    style: int
    name: str


@dataclass(frozen=True)
class _Layout:
    """One drawing: its size and that of its letters in pixels, and the rooms left around the plot."""

    key: str
    width: float
    height: float
    font: float
    left: float
    longest: float

    @property
    def plot(self) -> Box:
        return Box(self.left, 16, self.width - 14, self.height - 58)


_LAYOUTS = (_Layout("wide", 960, 470, 13, 70, 300), _Layout("narrow", 344, 420, 11.5, 50, 130))
"""A wide page gets the first, a phone the second: letters stay readable, and names find other places."""


def family(model: ModelResult) -> str:
    """Family of a model's main format."""
    return model.format.split(":", 1)[0]


def families(report: CompareReport) -> dict[str, Family]:
    """A style for each family, in the order in which they appear; the base's own style is none of them."""
    found = dict.fromkeys(family(model) for model in report.models)
    return {name: Family(min(index, _SHAPES - 1), name) for index, name in enumerate(found)}


def metrics(report: CompareReport) -> list[Metric]:
    """What this report can plot against size, most telling first."""
    possible = [
        Metric("kl", "KL divergence", "mean KL divergence, nats per token", True, 0.0, _kl, decimal, tick),
        Metric(
            "perplexity", "Perplexity", "perplexity", False, None, _perplexity, lambda v: decimal(v, 4), tick
        ),
        Metric(
            *("weights", "Weight error", "relative error of all weights", True, 0.0, _weights, error_percent),
            lambda v: f"{tick(v * 100)} %",
        ),
    ]
    return [metric for metric in possible if any(metric.measure(model) for model in report.models)]


def _finite(estimate: Estimate | None) -> Estimate | None:
    return estimate if estimate is not None and math.isfinite(estimate.value) else None


def _kl(model: ModelResult) -> Estimate | None:
    change = behaviour_change(model)
    return _finite(change.kl.mean) if change else None


def _perplexity(model: ModelResult) -> Estimate | None:
    if model.behaviour is None:
        return None
    # Both models read one text: what one perplexity alone may be off by says little about their difference.
    change = model.behaviour.against
    error = change.perplexity_difference.error if change else 0.0
    return _finite(Estimate(model.behaviour.perplexity.value, error))


def _weights(model: ModelResult) -> Estimate | None:
    cost = weight_cost(model)
    return None if cost is None else _finite(Estimate(cost, 0.0))


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that none beats in size and value at once, smallest first."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(set(points)):
        if not kept or y < kept[-1][1]:
            kept.append((x, y))
    return kept


def marker(style: int | None, x: float, y: float, radius: float = 6) -> Html:
    """Mark of a family (``None``: the base), each with a shape of its own for those who do not see colours."""
    class_ = "mark base" if style is None else f"mark f{style}"
    r = radius
    if style == 0:
        return el("circle", class_=class_, cx=f"{x:.1f}", cy=f"{y:.1f}", r=f"{r:.1f}")
    corners = {
        None: [(-r, -r), (r, r), (0, 0), (r, -r), (-r, r), (0, 0)],
        1: [(-r, -r), (r, -r), (r, r), (-r, r)],
        2: [(0, -1.3 * r), (1.3 * r, 0), (0, 1.3 * r), (-1.3 * r, 0)],
        3: [(0, -1.2 * r), (1.15 * r, 0.9 * r), (-1.15 * r, 0.9 * r)],
        4: [(0, 1.2 * r), (1.15 * r, -0.9 * r), (-1.15 * r, -0.9 * r)],
        5: [(-r, -0.5 * r), (0, -1.2 * r), (r, -0.5 * r), (r, 0.6 * r), (0, 1.2 * r), (-r, 0.6 * r)],
    }[style]
    d = "M" + "L".join(f"{x + dx:.1f} {y + dy:.1f}" for dx, dy in corners) + "Z"
    return el("path", class_=class_, d=d)


def scatter(report: CompareReport, metric: Metric) -> Html:
    """Draw size against one metric, once for wide pages and once for phones."""
    return join(*(_Drawing(report, metric, layout).draw() for layout in _LAYOUTS))


class _Drawing:
    """One drawing; its methods share scales."""

    def __init__(self, report: CompareReport, metric: Metric, layout: _Layout) -> None:
        self.metric, self.layout, self.plot = metric, layout, layout.plot
        self.styles = families(report)
        self.base = report.base
        self.measured = [(m, found) for m in report.models if (found := metric.measure(m)) is not None]
        itself = metric.measure(report.base)
        if itself is None and metric.by_itself is not None:
            itself = Estimate(metric.by_itself, 0.0)
        self.points = [*([(report.base, itself)] if itself else []), *self.measured]
        self.best = frontier([(m.bits_per_weight, e.value) for m, e in self.measured])
        values = [e.value for _, e in self.points]
        self.zero = metric.log and any(value <= 0 for value in values)
        positive = [value for value in values if value > 0] or [1.0]
        log = metric.log or min(positive) * 10 < max(positive)
        self.y = spread(positive if log else values, log)
        self.x = spread([m.bits_per_weight for m, _ in self.points], log=True, margin=0.08)
        # Where all models have as many weights, bits per weight are bytes.
        counts = {m.parameters for m, _ in self.points}
        self.parameters = counts.pop() if len(counts) == 1 else None

    def draw(self) -> Html:
        layout = self.layout
        title = f"chart-{self.metric.key}-{layout.key}"
        return el(
            "svg",
            el("title", f"Size against {self.metric.name.lower()}", id=f"{title}-title"),
            el("desc", self._description(), id=f"{title}-desc"),
            self._grid(),
            self._frontier(),
            self._points(),
            class_=f"scatter {layout.key}",
            viewBox=f"0 0 {layout.width:g} {layout.height:g}",
            role="img",
            aria_labelledby=f"{title}-title {title}-desc",
        )

    def _description(self) -> str:
        said = [
            f"{m.name}: {fixed(m.bits_per_weight, 2)} bits per weight, {self.metric.write(e.value)}"
            for m, e in sorted(self.points, key=lambda p: p[0].bits_per_weight)
        ]
        return f"{self.metric.axis[0].upper()}{self.metric.axis[1:]}, by size. {'; '.join(said)}."

    def _at(self, bits: float, value: float) -> tuple[float, float]:
        across = self.plot.left + self.x.place(bits) * (self.plot.right - self.plot.left)
        # A strip below the axis of logarithms is for nothing at all, which has none.
        bottom = self.plot.bottom - (34 if self.zero else 0)
        if self.zero and value <= 0:
            return across, self.plot.bottom - 10
        return across, bottom - self.y.place(value) * (bottom - self.plot.top)

    def _grid(self) -> Html:
        plot, font = self.plot, self.layout.font
        marks = []
        for value in self.y.ticks(6):
            _, y = self._at(self.x.low, value)
            marks.append(_rule(plot.left, y, plot.right, y, "grid"))
            marks.append(_words(plot.left - 8, y + font * 0.35, self.metric.mark(value), "tick", "end"))
        if self.zero:
            y = plot.bottom - 10
            marks.append(_rule(plot.left, y, plot.right, y, "grid zero"))
            marks.append(_words(plot.left - 8, y + font * 0.35, "0", "tick", "end"))
        marks.append(_rule(plot.left, plot.bottom, plot.right, plot.bottom, "axis"))
        marks += self._bits()
        marks.append(_words(plot.left, plot.top - 4, f"↑ {self.metric.axis}", "axis-name", "start"))
        below = "bits per weight" if self.parameters is None else "bits per weight, and size"
        marks.append(_words(plot.right, self.layout.height - 6, f"{below} →", "axis-name", "end"))
        return el("g", *marks, aria_hidden="true")

    def _bits(self) -> list[Html]:
        plot, marks, end = self.plot, [], -math.inf
        room = self.layout.font * (4.6 if self.parameters else 3)
        for bits in _bits_ticks(self.x):
            x, _ = self._at(bits, self.y.low)
            if x - end < room:
                continue
            end = x
            marks.append(_rule(x, plot.bottom, x, plot.bottom + 5, "axis"))
            marks.append(_words(x, plot.bottom + 18, f"{bits:g}", "tick", "middle"))
            if self.parameters:
                marks.append(
                    _words(
                        x, plot.bottom + 33, _short_size(bits * self.parameters / 8), "tick faint", "middle"
                    )
                )
        return marks

    def _frontier(self) -> Html | None:
        if len(self.best) < 2:
            return None
        path = "M" + "L".join("{:.1f} {:.1f}".format(*self._at(*point)) for point in self.best)
        return el("path", class_="frontier", d=path)

    def _points(self) -> Html:
        font = self.layout.font
        drawn, spots = [], []
        for model, found in self.points:
            x, y = self._at(model.bits_per_weight, found.value)
            style = None if model is self.base else self.styles[family(model)].style
            beaten = style is not None and (model.bits_per_weight, found.value) not in self.best
            said = f"{model.name}: {fixed(model.bits_per_weight, 2)} bits per weight, {size(model.nbytes)}, "
            said += f"{self.metric.axis} {self.metric.write(found.value)}"
            bar = self._bar(x, model, found)
            mark = marker(style, x, y, 5.5 if self.layout.key == "narrow" else 6.5)
            drawn.append(el("g", el("title", said), bar, mark, class_="point beaten" if beaten else "point"))
            spots.append(Spot(x, y, 8, shorten(model.name, font, self.layout.longest)))
        labels = place(spots, font, Box(self.plot.left, 4, self.layout.width, self.plot.bottom))
        names = [
            _name(spot, label, font, None if model is self.base else self.styles[family(model)].style)
            for (model, _), spot, label in zip(self.points, spots, labels, strict=True)
        ]
        return join(*drawn, el("g", *names, aria_hidden="true"))

    def _bar(self, x: float, model: ModelResult, found: Estimate) -> Html | None:
        """One standard error up and down."""
        if not (found.error > 0 and math.isfinite(found.error) and found.value > 0):
            return None
        _, top = self._at(model.bits_per_weight, found.value + found.error)
        _, bottom = self._at(model.bits_per_weight, max(found.value - found.error, self.y.low))
        return _rule(x, top, x, bottom, "error") if bottom - top > 14 else None


def _bits_ticks(scale: Scale) -> list[float]:
    coarse = scale.high > 3 * scale.low
    marks = (
        (2, 3, 4, 6, 8, 12, 16, 24, 32)
        if coarse
        else (1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6, 7, 8, 10, 12, 16)
    )
    return [bits for bits in marks if scale.low <= bits <= scale.high]


def _short_size(nbytes: float) -> str:
    number, unit = size(nbytes).split("\N{NO-BREAK SPACE}")
    return f"{number.removesuffix('.0')}\N{NO-BREAK SPACE}{unit}"


def _rule(x1: float, y1: float, x2: float, y2: float, class_: str) -> Html:
    return el("line", class_=class_, x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}")


def _words(x: float, y: float, words: str, class_: str, anchor: str) -> Html:
    return el("text", words, class_=class_, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)


def _name(spot: Spot, label: Label, font: float, style: int | None) -> Html:
    box = label.box
    middle = (box.top + box.bottom) / 2
    line = None
    if label.led:
        end = min(max(spot.x, box.left), box.right)
        line = _rule(spot.x, spot.y, end, box.bottom if box.bottom < spot.y else box.top, "lead")
    # Text that turns out wider than foreseen grows away from its point.
    left = box.left >= spot.x or abs((box.left + box.right) / 2 - spot.x) < 1
    class_ = "name base" if style is None else f"name f{style}"
    x, anchor = (box.left, "start") if left else (box.right, "end")
    if abs((box.left + box.right) / 2 - spot.x) < 1:
        x, anchor = spot.x, "middle"
    return join(line, _words(x, middle + font * 0.35, spot.name, class_, anchor))
