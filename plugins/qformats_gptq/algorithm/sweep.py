"""Rounding the columns of a weight one after the other, each with what the errors of others ask of it.

Both passes over a weight have one form. With the errors ``E`` (weight before minus after) of the columns that are
rounded, column ``i`` is rounded from ``w[i] + E @ F[:, i]``:

- the first pass takes the strictly upper triangular ``F`` of ``H = (I + F) D (I + F)ᵀ``. This is GPTQ: updating all
  later columns after each one, as its authors do, gives the same numbers;
- later passes take ``F = H / diag(H)`` without its diagonal: then column ``i`` becomes the level of least loss while
  all other columns stay fixed (coordinate descent), which never adds to the loss.

Work is done in panels: one matrix product brings in what other panels ask, and within a panel columns follow each
other, on a GPU in one kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qformats_gptq.algorithm.levels import Levels

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PANEL", "panel_of_torch", "sweep"]

PANEL = 128
"""Columns of a panel."""


def sweep(
    weight: Tensor, levels: Levels, matrix: Tensor, codes: Tensor, errors: Tensor, *, first: bool
) -> None:
    """Go over all columns once.

    Parameters
    ----------
    weight : Tensor
        float32, ``(N, K)``, contiguous like all others. Not modified.
    levels : Levels
        What each element can become.
    matrix : Tensor
        float32, ``(K, K)``: the upper triangular root of ``H`` for the first pass, ``H`` for later ones.
    codes, errors : Tensor
        float32, ``(N, K)``: of all columns; replaced. Before the first pass `errors` is zero.
    first : bool
        Whether this is the first pass.
    """
    import torch

    panel = _panel_of(weight)
    columns = weight.shape[1]
    diagonal = matrix.diagonal()
    for start in range(0, columns, PANEL):
        stop = min(columns, start + PANEL)
        inside = slice(start, stop)
        target = weight[:, inside].clone(memory_format=torch.contiguous_format)
        # In the first pass nothing but the columns before this panel has an error yet.
        others = slice(0, start if first else columns)
        if others.stop:
            target.addmm_(errors[:, others], matrix[others, inside] / diagonal[inside])
        if not first:
            target -= errors[:, inside]
        inner = (matrix[inside, inside] / diagonal[inside]).triu(1).contiguous()
        panel(start, weight, target, levels, inner, codes, errors)


def _panel_of(weight: Tensor) -> Callable[..., None]:
    """Kernel for the columns of one panel."""
    if weight.device.type == "cuda":
        from qformats_gptq.algorithm import panel_triton

        return panel_triton.panel
    if weight.device.type == "cpu":
        from qformats_gptq.algorithm import panel_cpu

        return panel_cpu.panel
    return panel_of_torch


def panel_of_torch(
    start: int,
    weight: Tensor,
    target: Tensor,
    levels: Levels,
    feedback: Tensor,
    codes: Tensor,
    errors: Tensor,
) -> None:
    """Columns from `start` on, as many as `target` has: what the kernels compute, on any device.

    Parameters
    ----------
    start : int
        First column.
    weight, codes, errors : Tensor
        float32, ``(N, K)``.
    target : Tensor
        float32, ``(N, columns of the panel)``: the panel's columns and what the errors of all columns ask so far.
        Overwritten.
    levels : Levels
        Of all columns.
    feedback : Tensor
        float32, strictly upper triangular, a row and a column for each column of the panel.
    """
    for i in range(target.shape[1]):
        place = slice(start + i, start + i + 1)
        column = levels.columns(place)
        code = column.codes(target[:, i : i + 1])
        error = weight[:, place] - column.values(code)
        target[:, i + 1 :].addmm_(error - errors[:, place], feedback[i : i + 1, i + 1 :])
        codes[:, place] = code
        errors[:, place] = error
