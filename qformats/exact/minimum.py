"""Whether some scale and minimum give these values: the search for grids with a float minimum."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from qformats.numbers.affine import AffineGrid

if TYPE_CHECKING:
    from torch import Tensor

    from qformats.exact.direct import Blocks

__all__ = ["search_minimum"]

_ULP = 2.0**-24
"""Relative error of one rounding to float32."""


def search_minimum(
    values: Tensor, distinct: Tensor, counts: Tensor, grid: AffineGrid, blocks: Blocks, left: list[int]
) -> Blocks:
    """Find scales and minima for the blocks that need a minimum other than 0.

    Searched are, for blocks of one value: a scale of 0. For others: for every number of steps between the smallest
    and the largest value, the storable scale nearest to their distance over these steps, with its neighbours, and for
    every first code the nearest storable minimum (in float32 with its neighbours). That finds every pair that needs
    no rounding, and most of those that do; other pairs whose rounding errors happen to cancel are not searched for.

    Parameters
    ----------
    values : Tensor
        float32, ``(n, b)``.
    distinct, counts : Tensor
        The different values of each block, and their number.
    grid : AffineGrid
        A grid of kind ``minimum``.
    blocks : Blocks
        What is known by now.
    left : list of int
        Blocks to search.

    Returns
    -------
    Blocks
        `blocks`, with those that were found filled in.
    """
    ok, codes = blocks.ok.clone(), blocks.codes.clone()
    scale, offset = blocks.scale.clone(), blocks.offset.clone()
    for index in left:
        pair = _pair(distinct[index, : int(counts[index])], grid)
        if pair is None:
            continue
        ok[index] = True
        scale[index], offset[index] = pair
        codes[index] = _codes(values[index], scale[index], offset[index], grid)[0]
    return replace(blocks, ok=ok, codes=codes, scale=scale, offset=offset)


def _codes(values: Tensor, scale: Tensor, minimum: Tensor, grid: AffineGrid) -> tuple[Tensor, Tensor]:
    """Codes of values under a scale and a minimum, uint8, and whether each gives its value."""
    import torch

    steps = (values.double() - minimum.double()) / scale.double()
    codes = torch.where(scale == 0, torch.zeros_like(steps), steps).round().clamp(0, grid.levels - 1).float()
    return codes.to(torch.uint8), scale * codes + minimum == values


def _pair(distinct: Tensor, grid: AffineGrid) -> tuple[Tensor, Tensor] | None:
    """Scale and minimum that give all of these values, ascending and different from each other."""
    import torch

    if len(distinct) == 1:
        minimum = grid.storable(distinct)[0]
        return (torch.zeros_like(minimum), minimum) if bool(minimum == distinct[0]) else None
    top = grid.levels - 1
    exact = distinct.double()
    counts = torch.arange(1, grid.levels, device=distinct.device)
    nearest = grid.storable(((exact[-1] - exact[0]) / counts).float())
    scales = torch.cat([nearest, *_neighbours(nearest, grid)])
    scales = scales[(scales > 0) & scales.isfinite()][:, None]
    places = (exact - exact[0]) / scales.double()
    # Each value is off by a rounding of itself and of its product.
    slack = 4 * _ULP * (2 * exact.abs().max() / scales.double() + top) + 1e-9
    near = ((places - places.round()).abs() <= slack).all(1) & (places[:, -1].round() <= top)
    for scale, place in zip(scales[near, 0], places[near].round(), strict=True):
        first = torch.arange(0, top - int(place[-1]) + 1, dtype=torch.float64, device=distinct.device)
        for sign, anchor in ((1.0, exact[0]), (-1.0, exact[-1])):
            signed = sign * scale
            nearest = grid.storable((anchor - signed.double() * first).float())
            minima = torch.cat(
                [nearest, *_neighbours(nearest, grid)] if grid.scale_dtype == "f32" else [nearest]
            )
            minima = minima[minima.isfinite()][:, None]
            _, gives = _codes(distinct, signed, minima, grid)
            found = gives.all(1).nonzero().flatten()
            if len(found):
                return signed, minima[found[0], 0]
    return None


def _neighbours(numbers: Tensor, grid: AffineGrid) -> tuple[Tensor, Tensor]:
    """Storable numbers next below and next above."""
    import torch

    from qformats.numbers.dtypes import torch_dtype

    stored = numbers.to(torch_dtype(grid.scale_dtype))
    ends = torch.full_like(stored, -torch.inf), torch.full_like(stored, torch.inf)
    below, above = (torch.nextafter(stored, end).float() for end in ends)
    return below, above
