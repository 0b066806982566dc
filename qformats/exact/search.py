"""Whether any parameters of a grid give these values: complete for symmetric grids, zero points and tables.

The largest magnitude of a block stands for one of the grid's levels. For each level the scales that give it this very
value are few, mostly one or none; each is tried on all values of the block, by the formula itself. So a block that
is not found has no representation. For a float minimum see :mod:`qformats.exact.minimum`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qformats.exact.direct import Blocks
from qformats.exact.minimum import search_minimum
from qformats.numbers.affine import AffineGrid
from qformats.numbers.dtypes import torch_dtype
from qformats.numbers.table import TableGrid

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["cost", "distinct_values", "search"]

_NEAR = 3
"""Neighbours tried on each side of the nearest storable scale. Rounding a product to float32 leaves at most two
scales besides it, unless the product has lost bits by being tiny; that shows in the outermost neighbour."""


def cost(grid: AffineGrid | TableGrid, block: int) -> int:
    """Numbers held in memory for a block while it is searched."""
    return max(block, 2 * grid.levels * (2 * _NEAR + 1))


def distinct_values(values: Tensor) -> tuple[Tensor, Tensor]:
    """Different values of each block, ascending, and their number.

    Parameters
    ----------
    values : Tensor
        float32, ``(n, b)``.

    Returns
    -------
    tuple of Tensor
        float32 ``(n, most of any block)``, padded with the largest value; int64 ``(n,)``.
    """
    import torch

    ordered = values.sort(1).values
    fresh = torch.ones_like(ordered, dtype=torch.bool)
    fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    place = fresh.cumsum(1) - 1
    counts = place[:, -1] + 1
    found = ordered[:, -1:].expand(-1, int(counts.max())).clone()
    # Equal values go to one place; -0 and +0 are equal.
    return found.scatter_(1, place, ordered), counts


def search(values: Tensor, grid: AffineGrid | TableGrid) -> Blocks:
    """Find codes and parameters for blocks of values.

    Parameters
    ----------
    values : Tensor
        float32, ``(n, b)``, finite.
    grid : AffineGrid or TableGrid
        The target.
    """
    import torch

    values = values + 0.0  # -0 becomes +0
    distinct, counts = distinct_values(values)
    scale = torch.zeros(len(values), device=values.device)
    zero = (values == 0).all(1)
    rest = (~zero & (counts <= grid.levels)).nonzero().flatten()
    found, chosen = _scales(distinct[rest], grid)
    scale[rest] = chosen
    ok = zero.clone()
    ok[rest] = found
    codes, offset = _encode(values, scale, grid)
    blocks = Blocks(ok, codes, scale, offset)
    if isinstance(grid, AffineGrid) and grid.kind == "minimum":
        open_blocks = (~ok & (counts <= grid.levels)).nonzero().flatten().tolist()
        return search_minimum(values, distinct, counts, grid, blocks, open_blocks)
    return blocks


def _levels(grid: AffineGrid | TableGrid, like: Tensor) -> Tensor:
    """Every level but zero that some parameters of the grid allow, nearest to zero first."""
    import torch

    if isinstance(grid, TableGrid):
        levels = grid.table(like)
    else:
        first, last = _range(grid)
        levels = torch.arange(first, last + 1, dtype=torch.float32, device=like.device)
    levels = levels[levels != 0]
    # The largest scale that works gives the smallest codes.
    return levels[levels.abs().argsort(stable=True)]


def _range(grid: AffineGrid) -> tuple[int, int]:
    """Smallest and largest level of an affine grid, where its minimum is 0."""
    top = grid.levels - 1
    first = {"symmetric": -grid.center, "zero_point": -top, "minimum": 0}[grid.kind]
    return first, top - grid.center if grid.kind == "symmetric" else top


def _scales(distinct: Tensor, grid: AffineGrid | TableGrid) -> tuple[Tensor, Tensor]:
    """Whether some scale gives all values of each block, and the first such scale."""
    import torch

    blocks = len(distinct)
    found = torch.zeros(blocks, dtype=torch.bool, device=distinct.device)
    chosen = torch.zeros(blocks, device=distinct.device)
    levels = _levels(grid, distinct)
    if not blocks or not len(levels):
        return found, chosen
    largest = torch.where(distinct[:, -1] >= -distinct[:, 0], distinct[:, -1], distinct[:, 0])
    ordinals, highest = _ordinals((largest.abs().double()[:, None] / levels.abs().double()), grid)
    near = torch.arange(-_NEAR, _NEAR + 1, device=distinct.device)
    ordinals = (ordinals[..., None] + near).clamp(1, highest)
    scales = _numbers(ordinals, grid)
    fits = scales * levels.abs()[:, None] == largest.abs()[:, None, None]
    # A format may store scales in another form, which reproduces fewer numbers than their dtype has.
    fits &= grid.storable(scales) == scales
    more = (fits[..., 0] & (ordinals[..., 0] > 1)) | (fits[..., -1] & (ordinals[..., -1] < highest))
    block, level, _ = candidates = fits.nonzero(as_tuple=True)
    signed = scales[candidates] * (largest.sign()[block] * levels.sign()[level])
    served = _serve(block, signed, distinct, grid)
    block, signed = block[served], signed[served]
    first = torch.ones_like(block, dtype=torch.bool)
    first[1:] = block[1:] != block[:-1]
    found[block[first]] = True
    chosen[block[first]] = signed[first]
    for index in (more.any(1) & ~found).nonzero().flatten().tolist():
        signed = _ends(distinct[index], levels, grid)
        same = torch.full((len(signed),), index, device=distinct.device)
        served = _serve(same, signed, distinct, grid)
        if bool(served.any()):
            found[index] = True
            chosen[index] = signed[served][0]
    return found, chosen


def _ends(values: Tensor, levels: Tensor, grid: AffineGrid | TableGrid) -> Tensor:
    """Scales to try if too many would give the largest value: the smallest one for each value and level.

    Scales that give a level a certain value are neighbours of each other. If any scale gives every value its level,
    then so does the largest of the smallest ones.
    """
    import torch

    magnitude = values[values != 0].abs()[:, None]
    steps = levels.abs()
    _, highest = _ordinals(values.new_zeros(1).double(), grid)
    low = torch.zeros((len(magnitude), len(steps)), dtype=torch.int64, device=values.device)
    high = torch.full_like(low, highest + 1)
    while bool((high - low > 1).any()):
        middle = (low + high) // 2
        reached = _numbers(middle, grid) * steps >= magnitude
        high = middle.where(reached, high)
        low = low.where(reached, middle)
    scales = _numbers(high[high <= highest], grid)
    return torch.cat([scales, -scales])


def _serve(block: Tensor, scale: Tensor, distinct: Tensor, grid: AffineGrid | TableGrid) -> Tensor:
    """Mask of the candidates, `scale` for `block`, that give every value of their block."""
    import torch

    kept = torch.arange(len(block), device=block.device)
    low, high = torch.zeros_like(scale), torch.zeros_like(scale)
    for values in distinct.T:
        level, fits = _level(values[block[kept]][:, None], scale[kept], grid)
        if isinstance(grid, AffineGrid) and grid.kind == "zero_point":
            low[kept] = low[kept].minimum(level[:, 0])
            high[kept] = high[kept].maximum(level[:, 0])
            fits &= (high[kept] - low[kept] < grid.levels)[:, None]
        kept = kept[fits[:, 0]]
    served = torch.zeros(len(block), dtype=torch.bool, device=block.device)
    served[kept] = True
    return served


def _level(values: Tensor, scale: Tensor, grid: AffineGrid | TableGrid) -> tuple[Tensor, Tensor]:
    """Level (index into the table) that gives each of ``(n, k)`` values under ``(n,)`` scales, and whether it does."""
    import torch

    scale = scale[:, None]
    if isinstance(grid, TableGrid):
        products = scale.abs() * grid.table(values)
        wanted = torch.where(scale < 0, -values, values) + 0.0
        place = torch.searchsorted(products, wanted.contiguous()).clamp(max=grid.levels - 1)
        return place.float(), products.gather(1, place) == wanted
    first, last = _range(grid)
    level = torch.where(scale == 0, torch.zeros_like(values), values / scale).round()
    return level, (level >= first) & (level <= last) & (scale * level == values)


def _encode(values: Tensor, scale: Tensor, grid: AffineGrid | TableGrid) -> tuple[Tensor, Tensor]:
    """Codes of values under scales that give them, and zero points."""
    import torch

    level, _ = _level(values, scale, grid)
    offset = torch.zeros_like(scale)
    if isinstance(grid, TableGrid):
        nearest = int(grid.table(values).abs().argmin())
        level = torch.where(scale[:, None] == 0, torch.full_like(level, nearest), level)
    elif grid.kind == "symmetric":
        offset = offset + grid.center
    elif grid.kind == "zero_point":
        low, high = level.amin(1).clamp(max=0), level.amax(1).clamp(min=0)
        offset = (offset + grid.levels // 2).maximum(-low).minimum(grid.levels - 1 - high)
    if isinstance(grid, AffineGrid):
        level = level + offset[:, None]
    return level.clamp(0, grid.levels - 1).to(torch.uint8), offset


def _bits(grid: AffineGrid | TableGrid) -> tuple[torch.dtype, torch.dtype, int]:
    """Dtype of the scale, integers of its width, and the largest finite number as such an integer."""
    import torch

    dtype = torch_dtype(grid.scale_dtype)
    integer = torch.int32 if dtype == torch.float32 else torch.int16
    return dtype, integer, int(torch.tensor(torch.finfo(dtype).max, dtype=dtype).view(integer))


def _ordinals(numbers: Tensor, grid: AffineGrid | TableGrid) -> tuple[Tensor, int]:
    """Nearest storable number to each of float64 numbers, none negative, counted from 0; and the largest count."""
    import torch

    dtype, integer, highest = _bits(grid)
    return numbers.to(dtype).view(integer).to(torch.int64).clamp(max=highest), highest


def _numbers(ordinals: Tensor, grid: AffineGrid | TableGrid) -> Tensor:
    """Inverse of :func:`_ordinals`: float32."""
    import torch

    dtype, integer, _ = _bits(grid)
    return ordinals.to(integer).view(dtype).to(torch.float32)
