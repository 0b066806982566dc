"""A quantized tensor, read in the blocks of another format.

Blocks of a format follow each other in the flattened tensor, whether they lie within rows or straddle them. So the
source is cut into *units*: the longest runs that divide a block of the target and lie in one block of the source.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import gcd
from typing import TYPE_CHECKING

from qformats.numbers.quantized import QuantizedTensor

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Run", "Source"]

LARGEST_LEVEL = 1 << 12
"""Whole levels beyond this are left to the search; up to it, a step of 11 bits times a level is exact in float32."""


@dataclass(frozen=True, eq=False)
class Run:
    """Blocks of the target, ``n`` of ``b`` elements, each of ``m`` units, with what the source says of them.

    Attributes
    ----------
    codes : Tensor
        Any integer dtype, ``(n, b)``.
    scale : Tensor
        float32, ``(n, m)``.
    zero : Tensor
        float32, ``(n, m)``, or ``(1, 1)`` where one number serves all: code of the value zero; 0 where there is a
        table.
    minimum : Tensor or None
        float32, ``(n, m)``.
    table : Tensor or None
        float32: value of each code.
    span : tuple of int
        Smallest and largest code of the whole source.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    minimum: Tensor | None
    table: Tensor | None
    span: tuple[int, int]

    def __len__(self) -> int:
        return int(self.codes.shape[0])

    @property
    def units(self) -> Tensor:
        """Codes by unit, ``(n, m, b / m)``."""
        blocks, units = self.scale.shape
        return self.codes.reshape(blocks, units, -1)

    def select(self, blocks: Tensor) -> Run:
        """Some of the blocks, by index or mask."""
        minimum = None if self.minimum is None else self.minimum[blocks]
        return replace(
            self,
            codes=self.codes[blocks],
            scale=self.scale[blocks],
            zero=self.zero if len(self.zero) == 1 else self.zero[blocks],
            minimum=minimum,
        )

    def values(self) -> Tensor:
        """What the elements stand for, by the formula of :class:`~qformats.QuantizedTensor`: float32, ``(n, b)``."""
        import torch

        if self.table is not None:
            level = self.table[self.units.long()]
        else:
            level = self.units.to(torch.float32) - self.zero.unsqueeze(-1)
        value = self.scale.unsqueeze(-1) * level
        if self.minimum is not None:
            value = value + self.minimum.unsqueeze(-1)
        return value.reshape(self.codes.shape)

    def infinite(self) -> Tensor:
        """Which blocks hold an infinity or a NaN: bool, ``(n,)``.

        Values are computed only where the largest level of the source would be beyond float32.
        """
        import torch

        if self.table is None:
            reach = (self.zero - self.span[0]).abs().maximum((self.zero - self.span[1]).abs())
        else:
            reach = self.table[self.span[0] : self.span[1] + 1].abs().max()
        # In float32 itself: overflow is exactly what this looks for.
        largest = self.scale.abs() * reach
        if self.minimum is not None:
            largest = largest + self.minimum.abs()
        doubtful = (~largest.isfinite().all(1)).nonzero().flatten()
        found = torch.zeros(len(self), dtype=torch.bool, device=self.codes.device)
        if len(doubtful):
            found[doubtful] = ~self.select(doubtful).values().isfinite().all(1)
        return found

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest code of each unit, float32 ``(n, m)``."""
        import torch

        units = self.units
        low, high = units, units
        # Halves against halves is far faster than a reduction over a short last dimension.
        while low.shape[-1] > 1 and low.shape[-1] % 2 == 0:
            middle = low.shape[-1] // 2
            low = torch.minimum(low[..., :middle], low[..., middle:])
            high = torch.maximum(high[..., :middle], high[..., middle:])
        return low.amin(-1).to(torch.float32), high.amax(-1).to(torch.float32)

    def whole_levels(self) -> Run | None:
        """The same blocks with the table's values as codes, if they are whole numbers."""
        import torch

        if self.table is None:
            return self
        used = self.table[self.span[0] : self.span[1] + 1]
        if not bool(((used == used.round()) & (used.abs() <= LARGEST_LEVEL)).all()):
            return None
        codes = self.table.nan_to_num(0.0, 0.0, 0.0).clamp(-LARGEST_LEVEL, LARGEST_LEVEL).to(torch.int16)
        return replace(
            self,
            codes=codes[self.codes.long()],
            table=None,
            span=(int(used.min()), int(used.max())),
        )


class Source:
    """A quantized tensor, flattened.

    Parameters
    ----------
    quantized : QuantizedTensor
        Not modified; needs one element or more.
    block : int
        Elements of a block of the target.
    """

    def __init__(self, quantized: QuantizedTensor, block: int) -> None:
        import torch

        self.rows, self.columns = quantized.shape
        self.total = self.rows * self.columns
        self.block = block
        self.codes = quantized.codes.reshape(-1)
        low, high = self.codes.aminmax()
        self.span = (int(low), int(high))
        self.block_size = quantized.block_size
        self.g_idx = quantized.g_idx
        self.scale = quantized.scale.to(torch.float32)
        zero = 0 if quantized.codebook is not None else quantized.zero_point
        self.zero = torch.as_tensor(zero, dtype=torch.float32, device=self.codes.device)
        minimum = quantized.minimum
        self.minimum = None if minimum is None else minimum.to(torch.float32)
        self.table = None if quantized.codebook is None else quantized.codebook.to(torch.float32)

    @cached_property
    def unit(self) -> int:
        """Elements of a unit."""
        block_rows, block_columns = self.block_size
        if block_rows == 0:
            return gcd(self.block, block_columns)
        unit = gcd(self.block, self.columns)
        if self.g_idx is not None:
            changes = (self.g_idx[1:] != self.g_idx[:-1]).nonzero().flatten() + 1
            return gcd(unit, *changes.tolist())
        return gcd(unit, block_columns) if block_columns < self.columns else unit

    def _index(self, first: int, last: int, unit: int) -> Tensor:
        """Block of the source, counted row by row, that each unit of the elements ``[first, last)`` lies in."""
        import torch

        start = torch.arange(first, last, unit, device=self.codes.device)
        block_rows, block_columns = self.block_size
        if block_rows == 0:
            return start // block_columns
        row, column = start // self.columns, start % self.columns
        column = column // block_columns if self.g_idx is None else self.g_idx.long()[column]
        return row // block_rows * self.scale.shape[1] + column

    @cached_property
    def length(self) -> int:
        """Elements of a block of the source, if all are runs of that length in the flattened tensor; else 0."""
        block_rows, columns = self.block_size
        if block_rows == 0:
            return columns if self.total % columns == 0 else 0
        columns = min(columns, self.columns)
        return columns if block_rows == 1 and self.g_idx is None and self.columns % columns == 0 else 0

    def _spread(self, values: Tensor, unit: int) -> Tensor:
        """Repeat values of blocks, all of which are whole numbers of units, over their units."""
        return values.reshape(-1, 1).expand(-1, self.length // unit).reshape(-1)

    def run(self, first: int, last: int, block: int) -> Run:
        """Elements ``[first, last)``, whole units and whole blocks of `block` elements."""
        unit = block if block == self.length else gcd(self.unit, block)
        whole = self.length and (first, last) == (0, self.total)
        index = None if whole else self._index(first, last, unit)
        shape = ((last - first) // block, block // unit)

        def of_units(values: Tensor) -> Tensor:
            if values.ndim == 0:
                return values.view(1, 1)
            spread = self._spread(values, unit) if index is None else values.reshape(-1)[index]
            return spread.view(shape)

        return Run(
            self.codes[first:last].view(shape[0], block),
            of_units(self.scale),
            of_units(self.zero),
            None if self.minimum is None else of_units(self.minimum),
            self.table,
            self.span,
        )
