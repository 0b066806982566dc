"""Scales in two levels: products of an outer scale and a small whole number for each block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ScaleLevels"]


@dataclass(frozen=True, eq=False)
class ScaleLevels:
    """How scales (and minima) that are products are stored; GGUF's K-quants are the example.

    A kernel that reads both numbers moves fewer bytes than one that reads their product.

    Attributes
    ----------
    columns : int
        Columns that share an outer scale, a multiple of those that share a scale.
    outer : Tensor
        float16 or float32, ``(N, ceil(K / columns))``.
    factor : Tensor
        int8, ``(N, ceil(K / block columns))``; scale is outer times factor, exactly in float32.
    outer_minimum, minimum_factor : Tensor or None
        The same for minima.

    Examples
    --------
    >>> import torch
    >>> from qformats.numbers import ScaleLevels
    >>> factor = torch.tensor([[3, -2]], dtype=torch.int8)
    >>> levels = ScaleLevels(64, torch.tensor([[0.5]]), factor)
    >>> levels.expand(32)[0].tolist()
    [[1.5, -1.0]]
    """

    columns: int
    outer: Tensor
    factor: Tensor
    outer_minimum: Tensor | None = None
    minimum_factor: Tensor | None = None

    def expand(self, block_columns: int) -> tuple[Tensor, Tensor | None]:
        """Scales, and minima if there are any.

        Parameters
        ----------
        block_columns : int
            Columns that share a scale.

        Returns
        -------
        tuple of Tensor
            float32, shape of `factor`.
        """
        each = self.columns // block_columns

        def product(outer: Tensor, factor: Tensor) -> Tensor:
            wide = outer.float().repeat_interleave(each, 1)[:, : factor.shape[1]]
            return wide * factor.float()

        scale = product(self.outer, self.factor)
        if self.outer_minimum is None or self.minimum_factor is None:
            return scale, None
        return scale, product(self.outer_minimum, self.minimum_factor)
