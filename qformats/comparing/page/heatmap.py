"""Where a model's weights are off: a map of layers and kinds of tensors for each model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qformats.comparing.page.markup import Html, el, join
from qformats.comparing.page.numbers import error_percent, fixed
from qformats.comparing.report import CompareReport, ModelResult, TensorError
from qformats.numbers.error import relative_error

__all__ = ["Cell", "Kinds", "bounds_text", "cells", "heat_map", "kinds", "legend"]

_ROW = 22
"""Height of a row, pixels."""
_FAINTEST = 0.08
"""Opacity of the smallest error, which must still be visible."""


@dataclass(frozen=True)
class Cell:
    """Tensors of one kind in one layer; the experts of a mixture share a cell.

    `error` is their relative error, taken together; 0 where all are equal to the base's.
    """

    kind: str
    layer: int | None
    tensors: tuple[TensorError, ...]
    error: float

    @property
    def db(self) -> float:
        """Signal to quantization noise, dB."""
        return math.inf if self.error == 0 else -20 * math.log10(self.error)


@dataclass(frozen=True)
class Kinds:
    """What the maps of a report have in common: rows (kind, whether it lies in layers), and layers."""

    rows: tuple[tuple[str, bool], ...]
    unchanged: tuple[str, ...]
    layers: tuple[int, ...]


def cells(tensors: Iterable[TensorError]) -> list[Cell]:
    """Group a model's tensors by kind and layer, in their order."""
    grouped: dict[tuple[str, int | None], list[TensorError]] = {}
    for tensor in tensors:
        grouped.setdefault((tensor.kind, tensor.layer), []).append(tensor)
    return [Cell(kind, layer, tuple(group), _together(group)) for (kind, layer), group in grouped.items()]


def _together(group: Sequence[TensorError]) -> float:
    return relative_error(
        math.fsum(t.error.count * t.error.rmse**2 for t in group),
        math.fsum(t.error.count * t.error.base_rms**2 for t in group),
    )


def kinds(report: CompareReport) -> Kinds:
    """Rows and columns for all models; kinds that no model has changed anywhere are only named."""
    changed: dict[tuple[str, bool], bool] = {}
    layers: set[int] = set()
    for model in report.models:
        for cell in cells(model.weights.by_tensor) if model.weights else ():
            key = (cell.kind, cell.layer is not None)
            changed[key] = changed.get(key, False) or cell.error != 0
            if cell.layer is not None:
                layers.add(cell.layer)
    rows = sorted((key for key, really in changed.items() if really), key=lambda key: not key[1])
    same = tuple(dict.fromkeys(kind for (kind, _), really in changed.items() if not really))
    return Kinds(tuple(rows), same, tuple(sorted(layers)))


def _finite_db(found: Iterable[Cell]) -> list[float]:
    return [cell.db for cell in found if math.isfinite(cell.db)]


def heat_map(model: ModelResult, common: Kinds, shared: tuple[float, float], sharing: bool) -> Html:
    """Draw one model's map.

    Parameters
    ----------
    model : ModelResult
        A model whose weights were compared.
    common : Kinds
        Of the report.
    shared : tuple of float
        Smallest and largest error of all models, dB, for the scale that maps can share.
    sharing : bool
        Whether it is drawn on that scale at first, rather than on its own.

    Returns
    -------
    Html
        A figure. Each cell has a title with its numbers.
    """
    assert model.weights is not None  # the caller chose models that have them
    found = [c for c in cells(model.weights.by_tensor) if (c.kind, c.layer is not None) in common.rows]
    own = _finite_db(found)
    bounds = _bounds(found, shared)
    by_row = {row: index for index, row in enumerate(common.rows)}
    at = {layer: index for index, layer in enumerate(common.layers)}
    rects = []
    for cell in found:
        row = by_row[(cell.kind, cell.layer is not None)]
        column, span = (at[cell.layer], 1) if cell.layer is not None else (0, max(1, len(at)))
        rects.append(_rect(cell, row, column, span, max(1, len(at)), bounds, shared, sharing))
    high = _ROW * len(common.rows)
    title = el("title", f"Errors of {model.name} by layer and kind of tensor, {bounds_text(own)}")
    drawing = el("svg", title, *rects, class_="heat", role="img", width="100%", height=high)
    names = el("ol", *(el("li", kind) for kind, _ in common.rows), class_="kinds", aria_hidden="true")
    return el(
        "figure",
        el("figcaption", el("h3", model.name), el("p", bounds_text(own), class_="range")),
        el("div", names, el("div", drawing, _layers(common.layers)), class_="heat-grid"),
        el(
            "p",
            f"Largest: {_told(max(found, key=lambda c: c.error))}" if own else None,
            class_="readout",
            aria_live="polite",
        ),
        class_="heat-figure",
    )


def _bounds(found: Sequence[Cell], otherwise: tuple[float, float]) -> tuple[float, float]:
    """Smallest and largest error in dB, of the format that most cells have.

    The few tensors that a mix keeps in more bits would take the whole scale, and leave one colour to the rest.
    """
    formats = Counter(cell.tensors[0].format for cell in found if math.isfinite(cell.db))
    if not formats:
        return otherwise
    main = formats.most_common(1)[0][0]
    own = _finite_db(cell for cell in found if cell.tensors[0].format == main)
    return min(own), max(own)


def bounds_text(own: Sequence[float]) -> str:
    """Range of errors in words, from values in dB."""
    if not own:
        return "no weight differs from the base's"
    return (
        f"{fixed(min(own), 1)} to {fixed(max(own), 1)} dB"
        if max(own) - min(own) >= 0.05
        else f"{fixed(own[0], 1)} dB"
    )


def _opacity(db: float, bounds: tuple[float, float]) -> str:
    low, high = bounds
    depth = 0.5 if high - low < 1e-9 else (high - db) / (high - low)
    return f"{_FAINTEST + (1 - _FAINTEST) * min(1.0, max(0.0, depth)):.2f}"


def _rect(
    cell: Cell,
    row: int,
    column: int,
    span: int,
    columns: int,
    own: tuple[float, float],
    shared: tuple[float, float],
    sharing: bool,
) -> Html:
    same, infinite = cell.error == 0, math.isinf(cell.error)
    return el(
        "rect",
        el("title", _told(cell)),
        class_="cell same" if same else "cell",
        x=f"{100 * column / columns:.3f}%",
        y=row * _ROW,
        width=f"{100 * span / columns:.3f}%",
        height=_ROW,
        fill_opacity=None if same else "1" if infinite else _opacity(cell.db, shared if sharing else own),
        data_own=None if same or infinite else _opacity(cell.db, own),
        data_shared=None if same or infinite else _opacity(cell.db, shared),
    )


def _told(cell: Cell) -> str:
    where = cell.kind if cell.layer is None else f"layer {cell.layer}, {cell.kind}"
    several = f" ({len(cell.tensors)} tensors)" if len(cell.tensors) > 1 else ""
    formats = ", ".join(dict.fromkeys(t.format for t in cell.tensors))
    off = (
        "same values as the base"
        if cell.error == 0
        else f"{fixed(cell.db, 1)} dB, error {error_percent(cell.error)}"
    )
    return f"{where}{several}: {formats}, {off}"


def _layers(layers: Sequence[int]) -> Html | None:
    """Numbers below the columns, few enough for a phone."""
    if not layers:
        return None
    every = max(1, math.ceil(len(layers) / 9))
    every = next(step for step in (1, 2, 4, 5, 8, 10, 16, 20, 25, 50, 100, every) if step >= every)
    marks = [
        el(
            "text",
            layer,
            class_="tick",
            x=f"{100 * (index + 0.5) / len(layers):.2f}%",
            y="14",
            text_anchor="middle",
        )
        for index, layer in enumerate(layers)
        if index % every == 0
    ]
    return el("svg", *marks, class_="heat-axis", width="100%", height="18", aria_hidden="true")


def legend() -> Html:
    """Scale of colours, from a small error to a large one."""
    steps = [
        el(
            "rect",
            class_="cell",
            x=f"{10 * n}%",
            y="0",
            width="10%",
            height="12",
            fill_opacity=f"{_FAINTEST + (1 - _FAINTEST) * n / 9:.2f}",
        )
        for n in range(10)
    ]
    return join(
        el("span", "small error"),
        el("svg", *steps, class_="legend-steps", width="120", height="12", aria_hidden="true"),
        el("span", "large error"),
        el(
            "span",
            el(
                "svg",
                el("rect", class_="cell same", x="1", y="1", width="14", height="10"),
                width="16",
                height="12",
                aria_hidden="true",
            ),
            " unchanged",
            class_="legend-same",
        ),
    )
