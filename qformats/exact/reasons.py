"""Why a block does not fit, in one clause."""

from __future__ import annotations

from math import gcd

from qformats.exact.search import distinct_values
from qformats.exact.source import Run, Source
from qformats.numbers.affine import AffineGrid
from qformats.numbers.dtypes import torch_dtype
from qformats.numbers.table import TableGrid

__all__ = ["FLOAT_NAMES", "explain", "levels_need"]

FLOAT_NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def levels_need(low: int, high: int, grid: AffineGrid | TableGrid) -> str:
    """Clause saying that levels `low` to `high` are not on a grid of equal steps."""
    needed = high - low + 1
    if needed > grid.levels or not (isinstance(grid, AffineGrid) and grid.kind == "symmetric"):
        return f"levels {low} to {high} need {needed} codes, but there are only {grid.levels}"
    return f"levels {low} to {high} are not within {-grid.center} to {grid.levels - 1 - grid.center}"


def explain(run: Run, source: Source, grid: AffineGrid | TableGrid) -> str:
    """Why the block in `run` was refused: the first rule it breaks, in the source's own terms."""
    values = run.values()
    _, counts = distinct_values(values + 0.0)
    steps = set(run.scale[0].abs().tolist())
    if len(steps) > 1:
        where = "elements" if grid.flat and source.columns % source.block else "columns"
        return f"a block of {run.codes.shape[1]} {where} spans {len(steps)} different scales"
    if run.table is not None and not isinstance(grid, TableGrid):
        used = run.table[run.codes[0].long()]
        if bool((used != used.round()).any()):
            return "its levels are not equally spaced"
    if isinstance(grid, TableGrid):
        what = "its levels are equally spaced, and" if run.table is None else "its levels are different:"
        return f"{what} no scale of {FLOAT_NAMES[grid.scale_dtype]} brings them onto the table"
    if run.minimum is not None and grid.kind != "minimum":
        found = f"{float(run.minimum[0, 0]):.7g}", f"{float(run.scale[0, 0]):.7g}"
        if float(run.minimum[0, 0]) % float(run.scale[0, 0] or 1):
            return f"a minimum of {found[0]} is not a whole number of steps of {found[1]}"
    levels = _levels(run)
    if levels is not None and grid.kind != "minimum":
        low, high = min(levels), max(levels)
        first, last = (0, 0) if grid.kind == "zero_point" else (-grid.center, grid.levels - 1 - grid.center)
        if grid.kind == "zero_point":
            fits = max(high, 0) - min(low, 0) < grid.levels
        else:
            fits = (low >= first and high <= last) or (-high >= first and -low <= last)
        if not fits and gcd(*levels) == 1:
            return levels_need(min(low, 0), max(high, 0), grid)
    if int(counts[0]) > grid.levels:
        return f"a block holds {int(counts[0])} different values, but there are only {grid.levels} codes"
    wrong = source.scale[grid.storable(source.scale) != source.scale]
    dtype = FLOAT_NAMES[grid.scale_dtype]
    if len(wrong):
        rounded = wrong.to(torch_dtype(grid.scale_dtype)).to(wrong.dtype) != wrong
        what = f"are not {dtype} numbers" if bool(rounded.any()) else "cannot be stored in this format"
        return f"{len(wrong)} of {source.scale.numel()} scales {what}, such as {float(wrong[0]):.9g}"
    if grid.kind == "minimum":
        return f"no scale and minimum of {dtype} give the values of a block"
    return f"no scale of {dtype} gives the values of a block"


def _levels(run: Run) -> list[int] | None:
    """Levels of a block, where they are whole numbers."""
    whole = run.whole_levels()
    if whole is None or whole.minimum is not None:
        return None
    levels = set((whole.units.float() - whole.zero.unsqueeze(-1)).flatten().tolist())
    return [int(level) for level in levels] if all(map(float.is_integer, levels)) else None
