"""Grids of bitsandbytes' formats, with its own rounding rules, on any device.

All arithmetic is float32, rounded to nearest even, never fused. Source:
bitsandbytes:bitsandbytes/backends/default/ops.py and csrc/kernels.cu.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qformats import AffineGrid, GridParams, QuantizedTensor, TableGrid
from qformats.errors import ConfigError, Described, NonFiniteError, ShapeError
from qformats.numbers import quotient
from qformats_bitsandbytes import tables
from qformats_bitsandbytes.nested import (
    NestedParams,
    NestedTensor,
    carried_by,
    double_quantize,
    reproduce,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FourBitGrid", "NestedGrid", "NestedParams", "RowAbsMaxGrid", "beyond_half", "row_maxima"]

_SMALLEST = 1e-38
"""Blocks smaller than this are multiplied by its inverse, not by infinity."""
_SHRINK = 40
"""Candidate scales that an importance-weighted fit tries, from the largest magnitude down to half of it."""


@dataclass(frozen=True)
class FourBitGrid(TableGrid):
    """NF4 and FP4: ``scale * codebook[code]``, one scale for `block_size` elements of the flattened weight.

    Codes are places in the ascending codebook; for FP4 these are not the stored ones.

    Attributes
    ----------
    thresholds : tuple of float
        Ascending, between neighbours of the codebook: a value's code is the number of those that are smaller. Without
        negative ones they apply to magnitudes.
    """

    thresholds: tuple[float, ...] = tables.NF4_THRESHOLDS

    flat = True

    @classmethod
    def of(cls, kind: str, block_size: int) -> FourBitGrid:
        """Grid of ``nf4`` or ``fp4``."""
        if kind == "nf4":
            return cls(tables.NF4, block_size)
        return cls(tables.FP4_LEVELS, block_size, thresholds=tables.FP4_THRESHOLDS)

    def _flat(self, values: Tensor) -> Tensor:
        """Blocks of a weight, float32 ``(blocks, block_size)``; the last one is padded with zeros."""
        import torch

        if values.ndim != 2 or not values.numel():
            raise ShapeError("weight", tuple(values.shape), "two dimensions, neither of them empty")
        flat = values.float().reshape(-1)
        return torch.nn.functional.pad(flat, (0, -flat.numel() % self.block_size)).view(-1, self.block_size)

    def _nearest(self, unit: Tensor, like: Tensor) -> Tensor:
        """Codes of blocks in units of their scale, shaped as the weight; ties go down (NF4) or towards 0 (FP4)."""
        import torch

        thresholds = torch.tensor(self.thresholds, dtype=torch.float32, device=unit.device)
        if self.thresholds[0] < 0:
            codes = torch.bucketize(unit, thresholds)
        else:
            level = torch.bucketize(unit.abs(), thresholds)
            codes = level.where(unit >= 0, -level) + len(thresholds)
        return codes.to(torch.uint8).reshape(-1)[: like.numel()].view(like.shape)

    def fit(self, weight: Tensor, importance: Tensor | None = None) -> GridParams:
        """Largest magnitude of each block; with `importance`, a smaller scale of least weighted squared error."""
        import torch

        blocks = self._flat(weight)
        largest = blocks.abs().amax(-1)
        if importance is None:
            return self.project(GridParams(largest))
        weights = self._flat(importance.expand_as(weight))
        chosen, least = largest, torch.full_like(largest, math.inf)
        for step in range(_SHRINK):
            scale = largest * (1 - step / (2 * _SHRINK))
            codes = self._nearest(_quotient(blocks, scale[:, None]), blocks)
            error = self.table(blocks)[codes.long()] * scale[:, None] - blocks
            loss = (weights * error.square()).sum(-1)
            chosen = scale.where(loss < least, chosen)
            least = loss.minimum(least)
        return self.project(GridParams(chosen))

    def encode(self, weight: Tensor, params: GridParams) -> Tensor:
        """Codes of the nearest table values; a block of scale zero gets the code of zero."""
        unit = _quotient(self._flat(weight), params.scale.float().flatten()[:, None])
        return self._nearest(unit, weight)

    def reference(self, weight: Tensor) -> tuple[Tensor, GridParams]:
        """Codes and scales as bitsandbytes chooses them: every block is multiplied by the inverse of its maximum."""
        blocks = self._flat(weight)
        largest = blocks.abs().amax(-1)
        inverse = 1.0 / largest.clamp(min=_SMALLEST)
        return self._nearest(blocks * inverse[:, None], weight), self.project(GridParams(largest))

    def quantized(self, codes: Tensor, params: GridParams) -> QuantizedTensor:
        """Canonical tensor; blocks lie along rows where a row is a whole number of them."""
        block, scale = self.block_of(codes), params.scale
        scale = scale.reshape(codes.shape[0], -1) if block[0] else scale.flatten()
        return QuantizedTensor(codes, scale, block, codebook=self.table(codes))


@dataclass(frozen=True)
class NestedGrid(FourBitGrid):
    """The same with scales that are quantized themselves; codes are chosen before that."""

    independent = False

    def project(self, params: GridParams) -> GridParams:
        """What double quantization makes of the scales."""
        scale = params.scale.float()
        if not bool(scale.isfinite().all()):
            return params
        nested = double_quantize(scale.flatten())
        return NestedParams(nested.decode().view(scale.shape), nested=nested)

    def quantized(self, codes: Tensor, params: GridParams) -> QuantizedTensor:
        """Canonical tensor that carries its quantized scales."""
        plain = super().quantized(codes, params)
        nested = params.nested if isinstance(params, NestedParams) else None
        return NestedTensor(codes, plain.scale, plain.block_size, codebook=plain.codebook, nested=nested)

    def validate(self, quantized: QuantizedTensor) -> None:
        """Refuse codes or parameters that lie off the grid; see :meth:`~qformats.Grid.validate`."""
        super().validate(quantized)
        if reproduce(quantized.scale.float().flatten(), carried_by(quantized)) is None:
            raise ConfigError(
                "scale", Described("values that double quantization changes"), "values that it keeps"
            )


@dataclass(frozen=True)
class RowAbsMaxGrid(AffineGrid):
    """INT8: the largest magnitude of a row gets code 127; the weight is rounded to float16 first.

    Files store that magnitude; the scale is a 127th of it, divided once in float32. Not every float32 is such a
    quotient: those that are not are rounded to the nearest one that is.
    """

    def storable(self, values: Tensor) -> Tensor:
        """Nearest float32 that is a 127th of a float32."""
        return quotient(values.float() * 127.0, 127.0)

    def reference(self, weight: Tensor) -> tuple[Tensor, GridParams]:
        """Codes and scales as bitsandbytes chooses them.

        Raises
        ------
        NonFiniteError
            If a weight is beyond float16.
        """
        import torch

        values = weight.to(torch.float16).float()
        beyond = int((~values.isfinite()).sum())
        if beyond:
            raise beyond_half(beyond, weight)
        largest = self.blocks(values).abs().amax(-1)
        # torch divides a number by a tensor in two steps.
        factor = torch.where(largest == 0, 0.0, 1.0 / largest * 127.0)
        return (values * factor).round().add(128).to(torch.uint8), GridParams(quotient(largest, 127.0))

    def plain(self) -> AffineGrid:
        """The same levels with any scale."""
        return AffineGrid(self.bits, self.block_size, scale_dtype="f32", low=self.low)


def _quotient(values: Tensor, scale: Tensor) -> Tensor:
    return (values / scale).where(scale != 0, values.new_zeros(()))


def row_maxima(scale: Tensor) -> Tensor:
    """Stored magnitudes whose 127ths are these scales.

    Up to two float32 numbers have the same 127th. If one of them is a float16 it is taken: that is what bitsandbytes
    stores.
    """
    import torch

    nearest = scale.float() * 127.0
    found = nearest
    for bound in (-math.inf, math.inf):
        other = torch.nextafter(nearest, torch.full_like(nearest, bound))
        better = (quotient(other, 127.0) == scale) & _is_half(other) & ~_is_half(found)
        found = other.where(better, found)
    return found


def _is_half(values: Tensor) -> Tensor:
    import torch

    return values.to(torch.float16).float() == values


def beyond_half(count: int, weight: Tensor) -> NonFiniteError:
    """Error for weights that are infinite after the cast to float16."""
    from qformats.kernels.dense import too_large

    found = f"{count} of {weight.numel()} values are too large for float16, to which int8 rounds first"
    return too_large(found, weight)
