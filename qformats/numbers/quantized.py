"""The canonical form of a quantized weight: what its numbers are, free of any byte layout."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from qformats.errors import ConfigError, Described, ShapeError
from qformats.numbers.memory import empty
from qformats.work.shown import Shown, dims

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from qformats.numbers.nested import NestedScales

__all__ = ["QuantizedTensor", "expand_blocks"]

_CHUNK = 1 << 18
"""Values that a processor decodes at a time, so that they stay in its cache: 200 ms for 4096 x 4096 became 11."""


def expand_blocks(
    values: Tensor, shape: tuple[int, int], block_size: tuple[int, int], g_idx: Tensor | None = None
) -> Tensor:
    """Repeat one value per block over the elements of its block.

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

    Examples
    --------
    >>> import torch
    >>> from qformats.numbers import expand_blocks
    >>> expand_blocks(torch.tensor([[1, 2], [3, 4]]), (2, 4), (1, 2)).tolist()
    [[1, 1, 2, 2], [3, 3, 4, 4]]
    >>> expand_blocks(torch.tensor([1, 2, 3]), (2, 3), (0, 2)).tolist()
    [[1, 1, 2], [2, 3, 3]]
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


@dataclass(frozen=True, eq=False, repr=False)
class QuantizedTensor(Shown):
    """What the numbers of a quantized weight are, free of any byte layout.

    The value of an element, in float32 with two roundings and no fused multiply-add, is
    ``fl(fl(scale * level) + minimum)`` where ``level`` is ``code - zero_point``, or ``codebook[code]``.

    Attributes
    ----------
    codes : Tensor
        uint8, int8 or int16, ``(N, K)``; dimensionless.
    scale : Tensor
        float16 or float32, weight units per step; one value per block: ``(ceil(N / block rows),
        ceil(K / block columns))``, or ``(number of blocks,)`` for flat blocks.
    block_size : tuple of int
        ``(rows, columns)`` of a block; ``(0, b)`` means blocks of `b` elements over the flattened tensor.
    zero_point : Tensor, int or float
        The code that stands for zero: integer, or float; shape of `scale`, or one number.
    minimum : Tensor, optional
        Weight units, shape of `scale`; added last.
    codebook : Tensor, optional
        float32, ``(levels,)``; replaces ``code - zero_point``.
    g_idx : Tensor, optional
        int32, ``(K,)``: the block column of each column, where columns were reordered.

    Raises
    ------
    ShapeError
        If the shape of a part does not match the codes and the block size.
    ConfigError
        If codes are not integers, a block has no size, or `g_idx` names a block that is not there.

    Examples
    --------
    >>> import torch
    >>> from qformats import QuantizedTensor
    >>> codes = torch.tensor([[7, 8, 9, 15]], dtype=torch.uint8)
    >>> scale = torch.tensor([[0.5, 2.0]])
    >>> QuantizedTensor(codes, scale, (1, 2), zero_point=8).dequantize().tolist()
    [[-0.5, 0.0, 2.0, 14.0]]
    """

    codes: Tensor
    scale: Tensor
    block_size: tuple[int, int]
    zero_point: Tensor | float = 0
    minimum: Tensor | None = None
    codebook: Tensor | None = None
    g_idx: Tensor | None = None

    def __post_init__(self) -> None:
        if self.codes.ndim != 2:
            raise ShapeError("codes", tuple(self.codes.shape), "two dimensions (out_features, in_features)")
        if self.codes.is_floating_point():
            raise ConfigError("dtype of codes", str(self.codes.dtype), "uint8, int8 or int16")
        block_rows, block_columns = self.block_size
        if block_rows < 0 or block_columns < 1:
            raise ConfigError("block_size", self.block_size, "(rows, columns) with one column or more")
        if self.g_idx is not None:
            self._check_order(self.g_idx)
        if self.codebook is not None and self.codebook.ndim != 1:
            raise ShapeError("codebook", tuple(self.codebook.shape), "one dimension, one value per code")
        expected = self.block_grid
        for name in ("scale", "minimum", "zero_point"):
            value = getattr(self, name)
            if hasattr(value, "shape") and tuple(value.shape) != expected:
                raise ShapeError(name, tuple(value.shape), f"{expected}, one value per block")

    def _shown_facts(self) -> dict[str, str]:
        rows, columns = self.block_size
        block = f"blocks of {columns}" if rows == 1 else f"flat blocks of {columns}" if not rows else ""
        zero = self.zero_point
        parts = {"minimum": self.minimum, "codebook": self.codebook, "order of columns": self.g_idx}
        if not isinstance(zero, int | float):
            parts["zero point"] = zero
        elif zero:
            block += f" around {zero:g}" if block else ""
        device = str(self.codes.device)
        return {
            "shape": dims(self.codes.shape),
            "codes": _dtype(self.codes),
            "blocks": block or f"blocks of {rows} x {columns}",
            "scale": f"{_dtype(self.scale)} scale {dims(self.scale.shape)}",
            **{
                name: f"{_dtype(part)} {name} {dims(part.shape)}"
                for name, part in parts.items()
                if part is not None
            },
            "device": "" if device == "cpu" else device,
        }

    def _check_order(self, g_idx: Tensor) -> None:
        columns = self.codes.shape[1]
        if tuple(g_idx.shape) != (columns,):
            raise ShapeError("g_idx", tuple(g_idx.shape), f"({columns},), one block per column")
        if self.block_size[0] == 0:
            allowed = "none, since blocks run over the flattened tensor"
            raise ConfigError("g_idx", Described("an order of columns"), allowed)
        if self.scale.ndim != 2:
            raise ShapeError("scale", tuple(self.scale.shape), "two dimensions, one value per block")
        if columns and not g_idx.is_meta:
            low, high, blocks = int(g_idx.min()), int(g_idx.max()), int(self.scale.shape[1])
            if low < 0 or high >= blocks:
                raise ConfigError("g_idx", f"[{low}, {high}]", f"[0, {blocks - 1}], the columns of `scale`")

    @property
    def nested_scales(self) -> tuple[NestedScales, ...]:
        """The two numbers of which each scale (and then each minimum) is a product, where a subclass carries them."""
        return ()

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

    def dequantize(self) -> Tensor:
        """Value of every element.

        Returns
        -------
        Tensor
            float32, ``(N, K)``, weight units, on the device of `codes`.
        """
        import torch

        rows, columns = self.shape
        if self.codes.device.type == "cpu":
            out, step = empty(self.shape, torch.float32), max(1, _CHUNK // max(1, columns))
        else:
            out, step = torch.empty(self.shape, dtype=torch.float32, device=self.codes.device), rows
        # Flat blocks do not end with the rows; those of several rows end with some of them.
        height = self.block_size[0]
        step = -(-step // height) * height if height else rows
        for start in range(0, rows if columns else 0, max(1, step)):
            self._decode(start, min(rows, start + step), out)
        return out

    def _decode(self, start: int, stop: int, out: Tensor) -> None:
        """Write the values of rows ``[start, stop)``, the first of them the first of a block."""
        import torch

        codes, values = self.codes[start:stop], out[start:stop]
        if self.codebook is not None:
            table = self.codebook.to(torch.float32)
            torch.index_select(table, 0, codes.reshape(-1).int(), out=values.view(-1))
        else:
            values.copy_(codes)
            if isinstance(self.zero_point, int | float):
                values.sub_(self.zero_point)
            else:
                self._apply(torch.Tensor.sub_, values, self.zero_point, start)
        self._apply(torch.Tensor.mul_, values, self.scale, start)
        if self.minimum is not None:
            self._apply(torch.Tensor.add_, values, self.minimum, start)

    def _apply(
        self, change: Callable[[Tensor, Tensor], Tensor], values: Tensor, parameter: Tensor, start: int
    ) -> None:
        """Change rows from `start` by a parameter of their blocks."""
        import torch

        rows, columns = values.shape
        height, width = self.block_size
        if height:
            parameter = parameter[start // height : -(-(start + rows) // height)]
        parameter = parameter.to(torch.float32)
        if height == 1 and self.g_idx is None and columns == parameter.shape[1] * width:
            change(values.view(rows, -1, width), parameter.unsqueeze(-1))
        else:
            change(values, expand_blocks(parameter, (rows, columns), self.block_size, self.g_idx))

    def take_rows(self, order: Tensor) -> QuantizedTensor:
        """The same tensor with its rows in another order.

        Parameters
        ----------
        order : Tensor
            int64, ``(M,)``: new row ``i`` is old row ``order[i]``.

        Raises
        ------
        ConfigError
            If blocks span several rows.
        """
        if self.block_size[0] != 1:
            raise ConfigError(
                "block_size", self.block_size, "blocks within rows, which reordering rows needs"
            )
        zero, minimum = self.zero_point, self.minimum
        return replace(
            self,
            codes=self.codes[order],
            scale=self.scale[order],
            zero_point=zero if isinstance(zero, int | float) else zero[order],
            minimum=None if minimum is None else minimum[order],
        )

    def to(self, device: torch.device | str) -> Self:
        """The same tensor on another device; what a subclass adds stays where it is."""
        moved = copy(self)
        for part in ("codes", "scale", "zero_point", "minimum", "codebook", "g_idx"):
            value = getattr(self, part)
            if hasattr(value, "to"):
                object.__setattr__(moved, part, value.to(device))
        return moved


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
