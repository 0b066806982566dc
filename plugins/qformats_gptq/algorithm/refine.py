"""Parameters fitted to codes that are chosen: least squares of the layer's output, block after block."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qformats import Grid, GridParams
from qformats_gptq.algorithm.levels import Levels
from qformats_gptq.algorithm.products import refit_products

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["refit"]


def refit(
    grid: Grid,
    params: GridParams,
    weight: Tensor,
    codes: Tensor,
    matrix: Tensor,
    places: Tensor | None,
    *,
    trials: bool = False,
) -> GridParams | None:
    """Storable parameters of less loss for the same codes.

    Blocks of a row are fitted one after the other, each with what the earlier ones leave.

    Parameters
    ----------
    grid : Grid
        What can be stored.
    params : GridParams
        Parameters so far.
    weight : Tensor
        float32, ``(N, K)``, columns in the order in which blocks hold them.
    codes : Tensor
        float32, ``(N, K)``.
    matrix : Tensor
        float32, ``(K, K)``: ``H``, in any order.
    places : Tensor or None
        int64, ``(K,)``: where each column is found in `matrix`; ``None`` for the same order.

    Returns
    -------
    GridParams or None
        ``None`` where blocks straddle rows, which are not fitted.
    """
    import torch

    rows, width = grid.block_of(weight)
    if rows == 0:
        return None
    columns = weight.shape[1]
    if places is None:
        places = torch.arange(columns, device=weight.device)
    if grid.nested(params) is not None:
        return refit_products(grid, params, weight, codes, matrix, places, trials=trials)
    levels = Levels.of(grid, params, weight)
    units = levels.units(codes)
    # In the order of the matrix, which is too large for a copy in another one.
    error = torch.empty_like(weight)
    error[:, places] = weight - levels.values(codes)
    del levels
    scale = params.scale.float().clone().view(weight.shape[0], -1)
    minimum = None if params.minimum is None else params.minimum.float().clone().view(scale.shape)
    for block, start in enumerate(range(0, columns, width)):
        stop = min(columns, start + width)
        own = places[start:stop]
        asked = matrix[:, own]
        inner = asked[own]
        unit = units[:, start:stop]
        pull = error @ asked
        by_unit, unit_pull = (unit @ inner), (pull * unit).sum(1)
        curve = (by_unit * unit).sum(1)
        if minimum is None:
            change = _ratio(unit_pull, curve)
            shift = None
        else:
            # Two unknowns: the scale times the unit, the minimum times 1.
            both, flat, ones_pull = by_unit.sum(1), inner.sum(), pull.sum(1)
            determinant = curve * flat - both.square()
            sound = determinant > 1e-6 * curve * flat
            change = torch.where(sound, _ratio(unit_pull * flat - ones_pull * both, determinant), 0.0)
            new = grid.storable(scale[:, block] + change)
            change = torch.where(new.isfinite(), new - scale[:, block], 0.0)
            shift = _ratio(ones_pull - both * change, flat.expand_as(curve))
        new = grid.storable(scale[:, block] + change)
        # A scale of 0, or of the other sign, would make other codes of them.
        kept = new.isfinite() & (new * scale[:, block] > 0)
        new = torch.where(kept, new, scale[:, block])
        error[:, own] -= (new - scale[:, block])[:, None] * unit
        scale[:, block] = new
        if minimum is not None and shift is not None:
            moved = grid.storable(minimum[:, block] + shift)
            moved = torch.where(kept & moved.isfinite(), moved, minimum[:, block])
            error[:, own] -= (moved - minimum[:, block])[:, None]
            minimum[:, block] = moved
    found = None if minimum is None else minimum.view(params.scale.shape)
    return grid.project(GridParams(scale.view(params.scale.shape), params.zero_point, found))


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    import torch

    return torch.where(below > 0, above / below, 0.0)
