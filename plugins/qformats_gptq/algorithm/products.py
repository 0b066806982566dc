"""Scales that are stored as products of two numbers: fitted among exactly those, for given codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from qformats import Grid, GridParams
from qformats.numbers import NestedScales
from qformats_gptq.algorithm.levels import Levels

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["merged_products", "refit_products", "weighed_products"]


def refit_products(
    grid: Grid,
    params: GridParams,
    weight: Tensor,
    codes: Tensor,
    matrix: Tensor,
    places: Tensor,
    *,
    trials: bool,
) -> GridParams:
    """Products of less loss for the same codes: those of blocks that share an outer number together.

    Parameters
    ----------
    grid, params, weight, codes, matrix
        As for :func:`qformats_gptq.algorithm.refine.refit`; `grid` has nested scales.
    places : Tensor
        int64, ``(K,)``: where each column is found in `matrix`.
    trials : bool
        Whether to try other outer numbers than those that the present ones lead to.
    """
    import torch

    nested = grid.nested(params)
    assert nested is not None
    levels = Levels.of(grid, params, weight)
    units = levels.units(codes)
    error = torch.empty_like(weight)
    error[:, places] = weight - levels.values(codes)
    del levels
    outers = torch.stack([each.outer for each in nested], -1).clone()
    inners = torch.stack([each.inner.view(*each.outer.shape, -1) for each in nested], 2).clone()
    blocks = inners.shape[-1]
    width = grid.columns(weight)
    for group in range(outers.shape[1]):
        own = places[group * blocks * width : (group + 1) * blocks * width]
        asked = matrix[:, own]
        pull, inner = error @ asked, asked[own]
        del asked
        unit = units[:, group * blocks * width : (group + 1) * blocks * width]
        curves, pulls = _system(unit, inner, pull, blocks, minimum=len(nested) == 2)
        before = (outers[:, group, :, None] * inners[:, group]).clone()
        outer, chosen = _chosen(curves, pulls, nested, outers[:, group], inners[:, group], trials=trials)
        outers[:, group], inners[:, group] = outer, chosen
        change = outer[..., None] * chosen - before
        moved = change[:, 0].repeat_interleave(width, 1) * unit
        if len(nested) == 2:
            moved += change[:, 1].repeat_interleave(width, 1)
        error[:, own] -= moved
    return grid.joined(_nested(nested, outers, inners))


def weighed_products(
    grid: Grid, params: GridParams, weight: Tensor, units: Tensor, importance: Tensor, *, trials: bool
) -> GridParams:
    """The same where every column counts by itself.

    Parameters
    ----------
    grid : Grid
        With nested scales.
    params : GridParams
        So far.
    weight, units : Tensor
        float32, ``(N, K)``: what to come close to, and levels in units of the scale.
    importance : Tensor
        float32, ``(K,)``.
    trials : bool
        See :func:`refit_products`.
    """
    import torch

    nested = grid.nested(params)
    assert nested is not None
    rows, groups = nested[0].outer.shape
    blocks = nested[0].group
    width = grid.columns(weight)
    shape = (rows, groups, blocks, width)
    cost = importance.view(1, groups, blocks, width)
    unit, value = units.view(shape), weight.view(shape)
    weighed = unit * cost
    outers = torch.stack([each.outer for each in nested], -1).reshape(rows * groups, -1)
    inners = torch.stack([each.inner.view(*each.outer.shape, -1) for each in nested], 2)
    inners = inners.reshape(rows * groups, len(nested), blocks)
    now = (outers[..., None] * inners).view(rows, groups, len(nested), blocks)
    rest = value - unit * now[:, :, 0, :, None]
    if len(nested) == 2:
        rest -= now[:, :, 1, :, None]
    count = blocks * len(nested)
    curves = weight.new_zeros((rows * groups, count, count))
    pulls = [(weighed * rest).sum(-1)]
    first = torch.arange(blocks, device=weight.device)
    curves[:, first, first] = (weighed * unit).sum(-1).view(-1, blocks)
    if len(nested) == 2:
        second = first + blocks
        both = weighed.sum(-1).view(-1, blocks)
        curves[:, first, second] = both
        curves[:, second, first] = both
        curves[:, second, second] = cost.sum(-1).expand(rows, -1, -1).reshape(-1, blocks)
        pulls.append((rest * cost).sum(-1))
    asked = torch.cat(pulls, -1).view(rows * groups, count)
    outer, inner = _chosen(curves, asked, nested, outers, inners, trials=trials)
    return grid.joined(
        _nested(nested, outer.view(rows, groups, -1), inner.view(rows, groups, len(nested), blocks))
    )


def merged_products(grid: Grid, better: Tensor, yes: GridParams, no: GridParams) -> GridParams:
    """Products of `yes` where they are better, ``(N, 1)`` or ``(N, groups)``, and of `no` elsewhere."""
    ones, others = grid.nested(yes), grid.nested(no)
    assert ones is not None
    assert others is not None
    found = []
    for one, other in zip(ones, others, strict=True):
        spread = better if better.shape[1] == 1 else better.repeat_interleave(one.group, 1)
        inner = one.inner.where(spread, other.inner)
        found.append(replace(one, outer=one.outer.where(better, other.outer), inner=inner))
    return grid.joined(found)


def _nested(like: Sequence[NestedScales], outers: Tensor, inners: Tensor) -> list[NestedScales]:
    rows = outers.shape[0]
    return [
        replace(each, outer=outers[..., p].contiguous(), inner=inners[:, :, p].reshape(rows, -1).contiguous())
        for p, each in enumerate(like)
    ]


def _system(
    unit: Tensor, inner: Tensor, pull: Tensor, blocks: int, *, minimum: bool
) -> tuple[Tensor, Tensor]:
    """Curvature of the loss in the scales (and minima) of one group of blocks, and half of how much it falls."""
    import torch

    rows, columns = unit.shape
    width = columns // blocks
    count = blocks * (2 if minimum else 1)
    curves = unit.new_empty((rows, count, count))
    for block in range(blocks):
        own = slice(block * width, (block + 1) * width)
        asked = unit[:, own] @ inner[own]
        curves[:, block, :blocks] = (asked * unit).view(rows, blocks, width).sum(-1)
        if minimum:
            both = asked.view(rows, blocks, width).sum(-1)
            curves[:, block, blocks:] = both
            curves[:, blocks:, block] = both
    pulls = (pull * unit).view(rows, blocks, width).sum(-1)
    if minimum:
        curves[:, blocks:, blocks:] = inner.view(blocks, width, blocks, width).sum((1, 3))
        pulls = torch.cat([pulls, pull.view(rows, blocks, width).sum(-1)], 1)
    return curves, pulls


def _chosen(
    curves: Tensor,
    pulls: Tensor,
    nested: Sequence[NestedScales],
    outers: Tensor,
    inners: Tensor,
    *,
    trials: bool,
) -> tuple[Tensor, Tensor]:
    """Outer ``(rows, p)`` and inner numbers ``(rows, p, blocks)`` of less loss.

    The search runs on a processor, whatever the device: there its systems go, a few numbers for each block.
    """
    import numpy as np
    import torch

    from qformats_gptq.algorithm import lattice_cpu

    device = outers.device

    def array(values: Tensor) -> np.ndarray:
        return np.ascontiguousarray(values.detach().to("cpu", torch.float32).numpy())

    # Copies, which are replaced.
    outer, inner = array(outers).copy(), array(inners.reshape(len(inners), -1)).copy()
    steps = [np.ascontiguousarray(each.steps.cpu().double().numpy()) for each in nested]
    lattice_cpu.choose(
        array(curves),
        array(pulls),
        nested[0].dtype,
        (steps[0], steps[-1]),
        outer,
        inner,
        trials=trials,
        threads=torch.get_num_threads(),
    )
    found = torch.from_numpy(inner).view(inners.shape).to(device)
    return torch.from_numpy(outer).to(device), found
