"""The two forms a quantized weight takes: what its numbers are, and which bytes hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qformats.errors import ShapeError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PackedTensor", "QuantizedTensor", "expand_blocks"]


def expand_blocks(
    values: Tensor, shape: tuple[int, int], block_size: tuple[int, int], g_idx: Tensor | None = None
) -> Tensor:
    """Repeat one value a block over the elements of its block.

    Parameters
    ----------
    values : Tensor
        ``(rows of blocks, columns of blocks)``, or ``(blocks,)`` for blocks over the flattened tensor.
    shape : tuple of int
        ``(N, K)`` of the weight; the last block of a dimension may be short.
    block_size : tuple of int
        ``(rows, columns)`` of a block; rows 0 for blocks over the flattened tensor.
    g_idx : Tensor, optional
        int, ``(K,)``: which column of blocks each column of the weight belongs to.

    Returns
    -------
    Tensor
        ``(N, K)``, same dtype and device as `values`.
    """
    rows, columns = shape
    block_rows, block_columns = block_size
    if block_rows == 0:
        return values.repeat_interleave(block_columns)[: rows * columns].view(rows, columns)
    if block_rows > 1:
        values = values.repeat_interleave(block_rows, 0)[:rows]
    if g_idx is not None:
        return values[:, g_idx.long()]
    if values.shape[1] != columns:
        values = values.repeat_interleave(block_columns, 1)[:, :columns]
    return values


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """What the numbers of a quantized weight are, free of any byte layout.

    The value of an element, in float32 with two roundings and no fused multiply-add, is
    ``fl(fl(scale * level) + minimum)`` where ``level`` is ``code - zero_point``, or ``codebook[code]``.

    Attributes
    ----------
    codes : Tensor
        uint8, int8 or int16, ``(N, K)``; dimensionless.
    scale : Tensor
        float16 or float32, weight units a step; one value a block: ``(ceil(N / block rows),
        ceil(K / block columns))``, or ``(number of blocks,)`` for flat blocks.
    block_size : tuple of int
        ``(rows, columns)`` of a block; ``(0, b)`` means blocks of `b` elements over the flattened tensor.
    zero_point : Tensor or int
        The code that stands for zero: integer, or float, shape of `scale` or one number.
    minimum : Tensor, optional
        Weight units, shape of `scale`; added last.
    codebook : Tensor, optional
        float32, ``(levels,)``; replaces ``code - zero_point``.
    g_idx : Tensor, optional
        int32, ``(K,)``: the block column of each column, where columns were reordered.
    """

    codes: Tensor
    scale: Tensor
    block_size: tuple[int, int]
    zero_point: Tensor | int = 0
    minimum: Tensor | None = None
    codebook: Tensor | None = None
    g_idx: Tensor | None = None

    def __post_init__(self) -> None:
        if self.codes.ndim != 2:
            raise ShapeError("codes", tuple(self.codes.shape), "two dimensions (out_features, in_features)")
        expected = self.block_grid
        for name in ("scale", "minimum", "zero_point"):
            value = getattr(self, name)
            if hasattr(value, "shape") and tuple(value.shape) != expected:
                raise ShapeError(name, tuple(value.shape), f"{expected}, one value a block")

    @property
    def shape(self) -> tuple[int, int]:
        """``(N, K)``, out_features and in_features."""
        rows, columns = self.codes.shape
        return int(rows), int(columns)

    @property
    def block_grid(self) -> tuple[int, ...]:
        """How many blocks there are along each dimension."""
        rows, columns = self.shape
        block_rows, block_columns = self.block_size
        if block_rows == 0:
            return (-(-rows * columns // block_columns),)
        if self.g_idx is not None:
            return (-(-rows // block_rows), int(self.scale.shape[1]))
        return (-(-rows // block_rows), -(-columns // block_columns))

    def _spread(self, values: Tensor) -> Tensor:
        return expand_blocks(values, self.shape, self.block_size, self.g_idx)

    def dequantize(self) -> Tensor:
        """Value of every element.

        Returns
        -------
        Tensor
            float32, ``(N, K)``, weight units, on the device of `codes`.
        """
        import torch

        if self.codebook is not None:
            level = self.codebook.to(torch.float32)[self.codes.long()]
        elif isinstance(self.zero_point, int):
            level = (self.codes.to(torch.int32) - self.zero_point).to(torch.float32)
        else:
            level = self.codes.to(torch.float32) - self._spread(self.zero_point.to(torch.float32))
        value = self._spread(self.scale.to(torch.float32)) * level
        if self.minimum is not None:
            value = value + self._spread(self.minimum.to(torch.float32))
        return value

    def pack(self, format: str) -> PackedTensor:
        """Bytes of this tensor in `format`, ``family:variant``; see :func:`qformats.pack`."""
        from qformats.api import pack

        return pack(self, format)


@dataclass(frozen=True, eq=False)
class PackedTensor:
    """Which bytes hold a weight in one format.

    Attributes
    ----------
    format : str
        ``family:variant``.
    shape : tuple of int
        Shape of the weight: ``(N, K)``, or any shape for dense formats.
    fields : mapping of str to Tensor
        Stored tensors by local name, shapes and dtypes as the format's descriptor says.
    """

    format: str
    shape: tuple[int, ...]
    fields: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Stored bytes, all fields together."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.fields.values())

    def unpack(self) -> QuantizedTensor:
        """Canonical form; see :func:`qformats.unpack`."""
        from qformats.api import unpack

        return unpack(self)

    def dequantize(self) -> Tensor:
        """Value of every element, float32; see :func:`qformats.dequantize`."""
        from qformats.api import dequantize

        return dequantize(self)
