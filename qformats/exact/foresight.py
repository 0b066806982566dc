"""What two grids and a shape tell before any data is read."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from functools import lru_cache

from qformats.exact.reasons import FLOAT_NAMES, levels_need
from qformats.numbers.affine import AffineGrid
from qformats.numbers.grid import Grid
from qformats.numbers.table import TableGrid

__all__ = ["Answer", "foresee"]

_TOLERANCE = 2.0**-20
"""Relative error allowed when levels are compared; four roundings to float32 make 2**-22."""


class Answer(StrEnum):
    """Whether a tensor can become another format unchanged.

    Examples
    --------
    >>> from qformats.interfaces import Answer
    >>> [str(answer) for answer in Answer]
    ['always', 'never', 'needs the data']
    """

    ALWAYS = "always"
    NEVER = "never"
    DATA = "needs the data"


def foresee(
    source: Grid, target: Grid, shape: tuple[int, int], *, reordered: bool = False
) -> tuple[Answer, str]:
    """Whether another grid can hold tensors of this one, and if not, why.

    Parameters
    ----------
    source, target : Grid
        Grids before and after.
    shape : tuple of int
        ``(N, K)`` of the tensor.
    reordered : bool
        Whether the tensor may have its columns in another order (``g_idx``).

    Returns
    -------
    tuple of Answer and str
        ``ALWAYS``: :func:`~qformats.exact.represent` accepts every tensor of finite values that ``source.validate``
        accepts, whoever wrote it. ``NEVER``: it accepts none, except where every block of the target has fewer than
        three different levels besides zero, or values below the normal numbers of float32. ``DATA``: it depends; the
        reason says on what.

    Examples
    --------
    >>> from qformats import AffineGrid
    >>> from qformats.interfaces import foresee
    >>> four, eight = AffineGrid(4, block_size=32), AffineGrid(8, block_size=32)
    >>> foresee(four, eight, (64, 64))
    (<Answer.ALWAYS: 'always'>, '')
    >>> foresee(eight, four, (64, 64))
    (<Answer.DATA: 'needs the data'>, 'levels -128 to 127 need 256 codes, but there are only 16')
    """
    rows, columns = shape
    known = isinstance(target, AffineGrid | TableGrid) and target.independent
    if not known or not isinstance(source, AffineGrid | TableGrid):
        return Answer.DATA, "only its own plugin knows what its grid can represent"
    assert isinstance(target, AffineGrid | TableGrid)
    block = target.block_size or columns
    if not block or (columns % block and not target.flat):
        return Answer.NEVER, f"rows of {columns} do not divide into blocks of {block}"
    if block > 2 and rows:
        reason = _impossible(source, target)
        if reason:
            return Answer.NEVER, reason
    doubts = [_levels_doubt(source, target), _dtype_doubt(source, target)]
    if type(target).storable is not Grid.storable:
        doubts.append("scales are stored in a special form")
    if reordered or source.reordered:
        doubts.insert(0, "columns may be in another order")
    elif not _within(source, block, rows, columns):
        doubts.insert(0, f"a block of {block} columns may span several scales")
    reason = next(filter(None, doubts), "")
    return (Answer.DATA if reason else Answer.ALWAYS), reason


def _within(source: Grid, block: int, rows: int, columns: int) -> bool:
    """Whether each block of the target lies within one block of the source."""
    total, length = rows * columns, source.block_size or columns
    if source.flat and columns % length:
        return length % block == 0 or length >= total
    if length >= columns:
        # A whole row is a block.
        return columns % block == 0 or total <= columns
    return length % block == 0 and (columns % block == 0 or total <= columns)


def _dtype_doubt(source: AffineGrid | TableGrid, target: AffineGrid | TableGrid) -> str:
    if target.scale_dtype in ("f32", source.scale_dtype):
        return ""
    before, after = FLOAT_NAMES[source.scale_dtype], FLOAT_NAMES[target.scale_dtype]
    return f"scales in {before} must be {after} numbers"


def _windows(source: AffineGrid | TableGrid) -> Iterator[tuple[float, ...]]:
    """Sets of levels that a block of the source may use; the minimum is left aside."""
    if isinstance(source, TableGrid):
        yield _float32(source.codebook)
        return
    centers = range(source.levels) if source.kind == "zero_point" else (_zero(source),)
    for center in centers:
        yield tuple(float(code - center) for code in range(source.levels))


def _zero(grid: AffineGrid) -> int:
    return grid.center if grid.kind == "symmetric" else 0


def _float32(values: tuple[float, ...]) -> tuple[float, ...]:
    from array import array

    return tuple(array("f", values))


def _levels_doubt(source: AffineGrid | TableGrid, target: AffineGrid | TableGrid) -> str:
    """Why levels of the source may not be levels of the target at the same scale; empty if all are."""
    shifts = isinstance(source, AffineGrid) and source.kind == "minimum"
    if isinstance(target, AffineGrid) and target.kind == "minimum":
        return _minimum_doubt(source, target, shifts)
    if shifts:
        return "its minima must be whole numbers of steps"
    for levels in _windows(source):
        if isinstance(target, TableGrid):
            table = set(_float32(target.codebook))
            if not (table.issuperset(levels) or table.issuperset(-level for level in levels)):
                return "its levels must be in the table"
            continue
        if any(level != int(level) for level in levels):
            return "its levels must be equally spaced"
        low, high = int(min(levels)), int(max(levels))
        if target.kind == "zero_point":
            fits = max(high, 0) - min(low, 0) < target.levels
        else:
            first, last = -target.center, target.levels - 1 - target.center
            fits = (first <= low and high <= last) or (first <= -high and -low <= last)
        if not fits:
            return levels_need(min(low, 0), max(high, 0), target)
    return ""


def _minimum_doubt(source: AffineGrid | TableGrid, target: AffineGrid, shifts: bool) -> str:
    """The same for a target with a float minimum."""
    below = False
    for levels in _windows(source):
        if any(level != int(level) for level in levels):
            return "its levels must be equally spaced"
        low, high = int(min(levels)), int(max(levels))
        below = below or low < 0
        if high - low >= target.levels or (low > 0 and high >= target.levels):
            return levels_need(low, high, target)
    # With float16 steps a minimum of some steps, and all sums, are exact in float32, and none is too large.
    if below and not shifts and (source.scale_dtype, target.scale_dtype) != ("f16", "f32"):
        return f"minima of whole steps must be {FLOAT_NAMES[target.scale_dtype]} numbers"
    return ""


def _impossible(source: AffineGrid | TableGrid, target: AffineGrid | TableGrid) -> str:
    """Why no three levels of the source can be levels of the target; empty if some can."""
    tables = isinstance(source, TableGrid), isinstance(target, TableGrid)
    if not any(tables):
        return ""
    shifted = [grid for grid in (source, target) if isinstance(grid, AffineGrid) and grid.kind == "minimum"]
    if shifted:
        table = source if tables[0] else target
        assert isinstance(table, TableGrid)
        possible = _in_a_row(_float32(table.codebook), shifted[0].levels - 1)
    else:
        possible = _in_proportion(_all_levels(source), _all_levels(target))
    if possible:
        return ""
    if all(tables):
        return "its levels are not those of the table"
    return (
        "its levels are not equally spaced"
        if tables[0]
        else "its levels are equally spaced, but the table's are not"
    )


def _all_levels(grid: AffineGrid | TableGrid) -> tuple[float, ...]:
    """Every level that a block may use under some zero point."""
    return tuple(sorted({level for levels in _windows(grid) for level in levels}))


@lru_cache(maxsize=64)
def _in_proportion(source: tuple[float, ...], target: tuple[float, ...]) -> bool:
    """Whether three levels of the source besides zero, times one factor, may be levels of the target.

    True also if the source has fewer than three, so that there is nothing to rule out.
    """
    import numpy as np

    levels, table = (np.array([x for x in part if x], np.float64) for part in (source, target))
    if len(levels) < 3:
        return True
    for anchor in levels:
        wanted = levels[:, None] * (table / anchor)
        place = np.searchsorted(table, wanted).clip(0, len(table) - 1)
        off = np.minimum(np.abs(table[place] - wanted), np.abs(table[place - 1] - wanted))
        if ((off <= _TOLERANCE * np.abs(wanted)).sum(0) >= 3).any():
            return True
    return False


@lru_cache(maxsize=64)
def _in_a_row(table: tuple[float, ...], top: int) -> bool:
    """Whether three entries of a table besides zero, two of them at most `top` steps apart, may lie whole steps apart.

    Entries are a common factor times what is in the table; what they are to be equal to is a multiple of a scale plus
    a minimum. Either is rounded twice at most.
    """
    import numpy as np

    levels = np.array([level for level in table if level], np.float64)
    if len(levels) < 3 or top < 2:
        return True
    steps = np.arange(1, top + 1)
    for i, low in enumerate(levels):
        for j in range(i + 2, len(levels)):
            high, between = levels[j], levels[i + 1 : j, None]
            place = (between - low) / (high - low) * steps
            reach = max(abs(low), abs(high))
            slack = 2.0**-21 * (2 * reach * steps / (high - low) + top)
            inside = (place.round() > 0) & (place.round() < steps)
            if (inside & (np.abs(place - place.round()) <= slack)).any():
                return True
    return False
