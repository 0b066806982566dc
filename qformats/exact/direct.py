"""Blocks that fit as they are: the same step (or its opposite), with other numbers for the same levels.

All of it is work on parameters and on the range of a block's codes; values are never computed. What is not decided
here is left to :mod:`qformats.exact.search`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qformats.exact.source import LARGEST_LEVEL, Run
from qformats.numbers.affine import AffineGrid
from qformats.numbers.table import TableGrid

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Blocks", "decide"]


@dataclass(frozen=True, eq=False)
class Blocks:
    """Blocks on the target's grid.

    Attributes
    ----------
    ok : Tensor
        bool, ``(n,)``: which blocks were decided; the rest holds anything.
    codes : Tensor
        uint8, ``(n, b)``.
    scale : Tensor
        float32, ``(n,)``.
    offset : Tensor
        float32, ``(n,)``: zero points or minima, if the grid has them.
    """

    ok: Tensor
    codes: Tensor
    scale: Tensor
    offset: Tensor


def decide(run: Run, grid: AffineGrid | TableGrid, *, look: bool) -> Blocks | None:
    """Renumber the codes of blocks in `run` whose levels and scales are on the grid.

    Parameters
    ----------
    run : Run
        Blocks of the source.
    grid : AffineGrid or TableGrid
        The target.
    look : bool
        Whether to look at the codes. If not, the range of all codes stands for that of each block, and no code is
        read unless every block can be decided so.

    Returns
    -------
    Blocks or None
        ``None`` if not `look` and a block is left over.
    """
    if isinstance(grid, TableGrid):
        return _into_table(run, grid, look)
    whole = run if run.table is None or not look else run.whole_levels()
    if whole is None:
        return _nothing(run)
    if whole.table is not None:
        return None
    return _into_steps(whole, grid, look)


def _nothing(run: Run) -> Blocks:
    import torch

    none = torch.zeros(len(run), device=run.codes.device)
    return Blocks(none.bool(), torch.zeros_like(run.codes, dtype=torch.uint8), none, none)


def _one_scale(run: Run, grid: AffineGrid | TableGrid) -> tuple[Tensor, Tensor]:
    """Scale of each block, and whether its units share it and the grid can store it."""
    scale = run.scale[:, 0]
    fits = scale.isfinite() & (grid.storable(scale) == scale)
    if run.scale.shape[1] > 1:
        fits &= (run.scale == scale[:, None]).all(1)
    return scale, fits


def _few_bits(scale: Tensor) -> Tensor:
    """Whether steps have 11 significant bits or less, so that whole multiples of them are exact in float32."""
    import torch

    return (scale.to(torch.float16).float() == scale) | (scale.to(torch.bfloat16).float() == scale)


def _into_steps(run: Run, grid: AffineGrid, look: bool) -> Blocks | None:
    """Equally spaced levels into equally spaced levels."""
    scale, fits = _one_scale(run, grid)
    zero = run.zero
    fits = fits & ((zero == zero.round()) & (zero.abs() <= LARGEST_LEVEL)).all(1)
    if run.minimum is not None and grid.kind != "minimum":
        # s * c + k * s is s * (c + k), where nothing is rounded.
        steps = (run.minimum / run.scale).where(run.minimum != 0, run.minimum)
        whole = (steps == steps.round()) & (steps.abs() <= LARGEST_LEVEL) & _few_bits(run.scale)
        exact = (run.minimum == 0) | (whole & (steps * run.scale == run.minimum))
        fits = fits & exact.all(1)
        zero = zero - steps.where(exact, zero.new_zeros(()))
    smallest, largest = run.bounds() if look else run.span
    low, high = (smallest - zero).amin(1), (largest - zero).amax(1)
    fits = fits & (low >= -LARGEST_LEVEL) & (high <= LARGEST_LEVEL)
    top = grid.levels - 1
    negative = None
    if grid.kind == "symmetric":
        first, last = -grid.center, top - grid.center
        as_is = (low >= first) & (high <= last)
        mirrored = (-high >= first) & (-low <= last)
        fits = fits & (as_is | mirrored)
        negative = ~as_is
        offset = scale.new_full((1,), grid.center)
    elif grid.kind == "zero_point":
        least, most = (-low).clamp(min=0), top - high.clamp(min=0)
        fits = fits & (least <= most)
        # The source's own zero point, if it can stay: codes are then the same.
        offset = zero[:, 0].maximum(least).minimum(most)
    else:
        offset, shift, possible = _minimum(run, grid, scale, low, high)
        fits = fits & possible
    if not look and not bool(fits.all()):
        return None
    offset = offset.expand(scale.shape)
    base = -shift if grid.kind == "minimum" else offset
    codes = _renumber(run, base, zero, negative, fits)
    if negative is not None:
        scale = scale.where(~negative, -scale)
    return Blocks(fits, codes, scale, offset)


def _minimum(
    run: Run, grid: AffineGrid, scale: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Minimum of each block, the level it stands for, and whether the block can have it."""
    import torch

    top = grid.levels - 1
    zero = torch.zeros_like(low)
    if run.minimum is not None:
        minimum = run.minimum[:, 0]
        fits = (low >= 0) & (high <= top) & (grid.storable(minimum) == minimum)
        return minimum, zero, fits & (run.minimum == minimum[:, None]).all(1)
    # Code 0 may stand for any level in [least, low]; 0 needs no minimum, and a multiple of a large power of two has
    # the fewest significant bits.
    least = high - top
    level = low
    for power in range(8):
        multiple = (low / (1 << power)).floor() * (1 << power)
        level = multiple.where(multiple >= least, level)
    level = zero.where((least <= 0) & (low >= 0), level)
    minimum = level * scale
    exact = _few_bits(scale) & (scale * top).isfinite() & (grid.storable(minimum) == minimum)
    fits = (least <= low) & ((level == 0) | (exact & minimum.isfinite()))
    return minimum.where(fits, zero), level, fits


def _renumber(run: Run, base: Tensor, zero: Tensor, negative: Tensor | None, fits: Tensor) -> Tensor:
    """Codes ``base + level``, or ``base - level`` where `negative`: uint8, modulo 256 all the way."""
    import torch

    codes = run.codes
    codes = codes.view(torch.uint8) if codes.dtype == torch.int8 else codes.to(torch.uint8)
    base = base[:, None]
    if not bool(fits.all()):
        base = base.where(fits[:, None], base.new_zeros(()))
        zero = zero.where(fits[:, None], zero.new_zeros(()))

    def plus(added: Tensor) -> Tensor:
        added = added.to(torch.int32).to(torch.uint8)
        first = added.flatten()[0]
        if bool((added == first).all()):
            # The usual case: one number for the whole tensor, often 0.
            return codes + first if int(first) else codes
        return (codes.view(run.units.shape) + added.unsqueeze(-1)).view(codes.shape)

    if negative is None or not bool((negative & fits).any()):
        return plus(base - zero)
    mirrored = (base + zero).to(torch.int32).to(torch.uint8).unsqueeze(-1) - codes.view(run.units.shape)
    return mirrored.view(codes.shape).where(negative[:, None], plus(base - zero))


def _into_table(run: Run, grid: TableGrid, look: bool) -> Blocks | None:
    """Levels that are in the target's table, under other numbers."""
    import torch

    scale, fits = _one_scale(run, grid)
    if run.minimum is not None:
        fits = fits & (run.minimum == 0).all(1)
    table = grid.table(run.scale)
    first, last = run.span
    same_table = (
        run.table is not None
        and last < len(table)
        and torch.equal(run.table[first : last + 1], table[first : last + 1])
    )
    if same_table and run.codes.dtype == torch.uint8 and (look or bool(fits.all())):
        return Blocks(fits, run.codes, scale, scale)
    if not look:
        return None
    if run.table is not None:
        levels, index = run.table, run.codes.long()
    else:
        zero = run.zero
        fits = fits & ((zero == zero.round()) & (zero.abs() <= LARGEST_LEVEL)).all(1)
        fits = fits & (max(abs(first), abs(last)) <= LARGEST_LEVEL)
        zero = zero.where(fits[:, None], zero.new_zeros(()))
        lowest, highest = int(first - zero.max()), int(last - zero.min())
        if highest - lowest > 4 * LARGEST_LEVEL:
            return _nothing(run)
        levels = torch.arange(lowest, highest + 1, dtype=torch.float32, device=scale.device)
        index = (run.units - zero.to(torch.int64).unsqueeze(-1) - lowest).view(run.codes.shape)
        # Blocks whose zero point does not matter have their own indices.
        index = index.clamp(0, len(levels) - 1)

    def numbers(values: Tensor) -> tuple[Tensor, Tensor]:
        place = torch.searchsorted(table, values.nan_to_num()).clamp(max=len(table) - 1)
        known = (table[place] == values)[index].all(1)
        return place.to(torch.uint8)[index], known

    codes, known = numbers(levels)
    if not bool((known | ~fits).all()):
        other, mirrored = numbers(-levels)
        mirrored &= ~known
        codes = other.where(mirrored[:, None], codes)
        scale = scale.where(~mirrored, -scale)
        known |= mirrored
    return Blocks(fits & known, codes, scale, scale)
