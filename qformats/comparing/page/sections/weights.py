"""Where the weights are off: totals, maps, and every tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from qformats.comparing.page.heatmap import bounds_text, cells, heat_map, kinds, legend
from qformats.comparing.page.markup import Html, Node, el, join
from qformats.comparing.page.numbers import MINUS, NONE, TIMES, count, decimal, error_percent, fixed, size
from qformats.comparing.page.sections.parts import ERROR, NAMED, nothing
from qformats.comparing.page.tables import Column, Entry, table
from qformats.comparing.report import CompareReport, ModelResult, TensorError

__all__ = ["weights"]

_DB = f"{MINUS}20 log₁₀ of the previous column."


def weights(report: CompareReport) -> Html | None:
    """Totals, a map for each model, and tables of tensors; ``None`` if there is nothing to compare with."""
    compared = [m for m in report.models if m.weights is not None]
    if not compared:
        return nothing("No weights were compared.") if report.models else None
    common = kinds(report)
    intro = [
        "Signal to quantization noise of every tensor against the base's: 20 dB is an error of a tenth, 40 dB of a "
        "hundredth, 6 dB a factor of two. The stronger the colour, the larger the error. On one scale for all models a "
        "colour means the same error in every map; on its own, a map shows where its model is worst, from the smallest "
        "to the largest error of the format that most of its tensors are in."
    ]
    if common.unchanged:
        names = ", ".join(common.unchanged)
        intro.append(f" Left out, because no model changes them: {names}.")
    maps: Node = None
    if common.rows:
        shared = _shared_bounds(compared)
        # Several maps are there to be compared.
        sharing = len(compared) > 1
        switch = el(
            "label",
            el("input", type="checkbox", id="shared-scale", checked=sharing),
            el("span", f"One scale for all models ({bounds_text(shared)})"),
            class_="switch",
            hidden=True,
        )
        maps = join(
            el("p", legend(), switch, class_="heat-legend"),
            el("div", *(heat_map(m, common, shared, sharing) for m in compared), class_="heats"),
            el(
                "p",
                "Point at a cell for its numbers, or walk through a map with the arrow keys.",
                class_="small script-only",
                hidden=True,
            ),
        )
    folds = [
        el(
            "details",
            el(
                "summary",
                el("h3", m.name),
                el("span", count(len(m.weights.by_tensor), "tensor"), class_="faint"),
            ),
            _tensors(m, f"tensors-{index}"),
            class_="fold",
        )
        for index, m in enumerate(compared)
        if m.weights is not None and m.weights.by_tensor
    ]
    return join(
        _totals(compared),
        el("p", *intro),
        maps,
        el("h3", "Tensor by tensor") if folds else None,
        *folds,
    )


def _totals(models: Sequence[ModelResult]) -> Html:
    columns = [
        Column("Model", "", numeric=False),
        Column("Error", ERROR),
        Column("dB", f"Signal to quantization noise of all weights: {_DB}"),
        Column("Largest", "Largest absolute error of any weight, in weight units."),
        Column(
            f"1 {MINUS} cosine",
            "One minus the cosine of the angle between all weights and the base's, as vectors.",
        ),
        Column(
            "Block error", "Relative error of the quantized matrices of this model's blocks, taken together."
        ),
        Column("Block dB", "Signal to quantization noise of those matrices."),
        Column("Block bits", "Their stored bits per weight."),
        Column("Block size", "Their stored bytes."),
    ]
    rows = []
    for m in models:
        if m.weights is None:
            continue
        w, total, linears = m.weights, m.weights.total, m.weights.linears
        row = [
            Entry(m.name),
            Entry(error_percent(total.relative_rmse), total.relative_rmse),
            Entry(fixed(total.sqnr_db, 1), total.sqnr_db),
            Entry(decimal(total.max_error), total.max_error),
            Entry(decimal(max(0.0, 1 - total.cosine), 2), 1 - total.cosine),
        ]
        if w.linear_parameters:
            row += [
                Entry(error_percent(linears.relative_rmse), linears.relative_rmse),
                Entry(fixed(linears.sqnr_db, 1), linears.sqnr_db),
                Entry(fixed(w.linear_bits_per_weight, 2), w.linear_bits_per_weight),
                Entry(size(w.linear_nbytes), w.linear_nbytes),
            ]
        else:
            row += [Entry(NONE)] * 4
        rows.append(row)
    return table(
        "Errors of all weights, and of the quantized matrices of the blocks",
        columns,
        rows,
        "weight-totals",
    )


def _shared_bounds(models: Iterable[ModelResult]) -> tuple[float, float]:
    found = [c.db for m in models if m.weights for c in cells(m.weights.by_tensor) if math.isfinite(c.db)]
    return (min(found), max(found)) if found else (0.0, 1.0)


def _tensors(model: ModelResult, key: str) -> Html:
    assert model.weights is not None  # the caller chose models that have them
    worst = sorted(model.weights.by_tensor, key=lambda t: -t.error.relative_rmse)
    columns = [
        Column("Tensor", "", numeric=False),
        Column("Layer", "Number of its block."),
        Column("Kind", "Its role within the block.", numeric=False),
        Column("Shape", f"Outputs {TIMES} inputs; sorts by the number of weights."),
        Column("Format", "Format of its bytes.", numeric=False),
        Column("Bytes", "Stored bytes."),
        Column("Bits", "Stored bits per weight."),
        Column("Error", "Relative error: root mean square error over the base's root mean square."),
        Column("dB", f"Signal to quantization noise: {_DB}"),
        Column("RMSE", "Root mean square error, in weight units."),
        Column("Largest", "Largest absolute error, in weight units."),
        Column(f"1 {MINUS} cosine", "One minus the cosine of the angle between the two tensors as vectors."),
        Column("Bytes kept", "Whether format and bytes are the same as the base's.", numeric=False),
    ]
    caption = f"Tensors of {model.name}, the largest error first"
    if len(worst) > NAMED:
        caption += f"; {NAMED} of {len(worst):,} (the JSON report has them all)"
    return table(caption, columns, [_tensor_row(t) for t in worst[:NAMED]], key)


def _tensor_row(t: TensorError) -> list[Entry]:
    e = t.error
    angle = max(0.0, 1 - e.cosine)
    return [
        Entry(t.name),
        Entry(NONE if t.layer is None else t.layer, t.layer),
        Entry(t.kind),
        Entry(f" {TIMES} ".join(map(str, t.shape)), float(math.prod(t.shape))),
        Entry(t.format),
        Entry(size(t.nbytes), t.nbytes),
        Entry(fixed(t.bits_per_weight, 2), t.bits_per_weight),
        Entry(error_percent(e.relative_rmse), e.relative_rmse),
        Entry(fixed(e.sqnr_db, 1), e.sqnr_db),
        Entry(decimal(e.rmse), e.rmse),
        Entry(decimal(e.max_error), e.max_error),
        Entry(decimal(angle, 2), angle),
        Entry("yes" if t.identical else "no"),
    ]
