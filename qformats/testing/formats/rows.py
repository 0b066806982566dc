"""Check of ranges of rows: what is packed in slices is what was packed whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qformats.errors import ConfigError
from qformats.interfaces import PackedTensor, Packer
from qformats.interfaces.rows import cut, join, pick, stack
from qformats.numbers import SIZES
from qformats.testing.compare import same_fields, same_values
from qformats.testing.failure import Mismatch, NotApplicable, expect, reported
from qformats.testing.weights import normal, sample, shapes, usual_shape

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["check_rows"]


@reported
def check_rows(packer: Packer) -> None:
    """Ranges of rows that ``row_step`` allows, packed by themselves, are ranges of bytes of the whole, and back.

    Examples
    --------
    >>> import qformats
    >>> from qformats.testing import check_rows
    >>> check_rows(qformats.packer("gguf:q4_0"))
    """
    if not packer.readable:
        raise NotApplicable("the format can only be copied")
    for shape in _shapes(packer):
        step = packer.row_step(shape)
        expect(type(step) is int and step >= 0, f"row_step({shape}) {step!r}", "0, or a number of rows")
        whole = sample(packer, shape, seed=4)
        values = packer.dequantize(whole)
        if step:
            _spans(packer, shape, step)
            _ranges(packer, whole, values, step)
        _between(whole, step)
        if step == 1:
            _reordered(whole, values)
        _row_packer(packer, whole, values)


def _shapes(packer: Packer) -> list[tuple[int, int]]:
    """A shape of each kind: rows by themselves, in groups, and only together."""
    found: dict[int, tuple[int, int]] = {}
    for shape in [usual_shape(packer), *shapes(packer)]:
        if shape[0] >= 3 and (shape[0] > packer.row_step(shape)):
            found.setdefault(min(2, packer.row_step(shape)), shape)
    return list(found.values()) or [usual_shape(packer)]


def _steps(rows: int, step: int) -> list[tuple[int, int]]:
    """A short range, and the rest."""
    return [(0, step), (step, rows)] if step < rows else [(0, rows)]


def _spans(packer: Packer, shape: Sequence[int], step: int) -> None:
    fixed = packer.fixed(shape, "f32")
    for name, (dims, dtype) in packer.stored(shape).items():
        if name in fixed:
            continue
        size, end = SIZES[dtype], 0
        for dim in dims:
            size *= dim
        for start, stop in _steps(shape[0], step):
            first, last = packer.span(name, shape, start, stop)
            found = f"span({name!r}, {tuple(shape)}, {start}, {stop}) {(first, last)}"
            expect(
                first == end and last >= first,
                found,
                f"one that begins at byte {end}, where the last one ends",
            )
            end = last
        expect(end == size, f"spans of {name!r} that end at byte {end}", f"{size}, the end of the field")


def _ranges(packer: Packer, whole: PackedTensor, values: Tensor, step: int) -> None:
    fixed = packer.fixed(whole.shape, "f32")
    weight = normal(tuple(whole.shape), seed=4)
    parts = []
    for start, stop in _steps(whole.shape[0], step):
        what = f"rows {start} to {stop} of {tuple(whole.shape)}"
        piece = cut(whole, start, stop)
        parts.append(piece)
        if packer.writable:
            alone = packer.encode_reference(weight[start:stop])
            same_fields(alone, piece, f"{what} packed by themselves", without=fixed)
            piece = alone
        same_values(packer.dequantize(piece), values[start:stop], f"values of {what}")
    same_fields(stack(tuple(whole.shape), parts), whole, "ranges of rows put together", without=fixed)


def _between(whole: PackedTensor, step: int) -> None:
    """Ranges that the step does not allow are refused."""
    rows = whole.shape[0]
    if step == 1 or rows < 2:
        return
    try:
        cut(whole, 0, 1)
    except ConfigError:
        return
    raise Mismatch(f"row 0 of {tuple(whole.shape)} by itself", f"ConfigError: row_step is {step}")


def _reordered(whole: PackedTensor, values: Tensor) -> None:
    import torch

    rows = whole.shape[0]
    order = torch.arange(rows - 1, -1, -1)
    same_values(pick(whole, order).dequantize(), values[order], "values of rows in another order")
    parts = [cut(whole, 0, 1), cut(whole, 1, rows)]
    same_fields(join(parts), whole, "rows joined", without=whole.packer.fixed(whole.shape, "f32"))


def _row_packer(packer: Packer, whole: PackedTensor, values: Tensor) -> None:
    """Where rows can be put into another order through codes, the values stay."""
    import torch

    other = packer.row_packer(whole.shape)
    if other is None or not packer.spec.level or packer.grid is None:
        return
    order = torch.arange(whole.shape[0] - 1, -1, -1)
    again = other.pack(packer.unpack(whole).take_rows(order))
    same_values(
        other.dequantize(again), values[order], f"values of rows that {other.name} holds in another order"
    )
