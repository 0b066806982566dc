"""What formats with a power of two for a few floats share: their scales, stored as exponents of 8 bits (E8M0).

Levels of E2M1 are counted in halves here (see :data:`~qformats.numbers.E2M1`), and scales are half of what is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qformats.numbers.grid import GridParams
from qformats.numbers.table import TableGrid

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["RuledGrid", "half_powers", "nearest_power", "stored_exponents"]

_BIAS = 128
"""Of half a power: 127 is that of E8M0."""


@dataclass(frozen=True)
class RuledGrid(TableGrid):
    """Levels of a table, with scales that the format's own rule gives: importances make no difference.

    Examples
    --------
    >>> import torch
    >>> from qformats.numbers import E2M1
    >>> from qformats.numbers.powers import RuledGrid
    >>> grid = RuledGrid(E2M1, 4)
    >>> weight = torch.tensor([[1.0, -12.0, 3.0, 0.0]])
    >>> grid.weighted(weight, torch.ones(1, 4))[1].scale.item()
    1.0
    """

    fixed = True

    def fit(self, weight: Tensor, importance: Tensor | None = None) -> GridParams:
        """Scales by the rule."""
        return self.reference(weight)[1]

    def reference(self, weight: Tensor) -> tuple[Tensor, GridParams]:
        """Codes and scales by the rule; unless a format has another one, the largest magnitude is the largest level."""
        params = super().fit(weight)
        return self.encode(weight, params), params

    def weighted(self, weight: Tensor, importance: Tensor) -> tuple[Tensor, GridParams]:
        """As without importances."""
        return self.reference(weight)


def nearest_power(values: Tensor, most: int = 126) -> Tensor:
    """Nearest powers of two from ``2 ** -128`` to ``2 ** most``, float32; 0 becomes the smallest.

    Parameters
    ----------
    values : Tensor
        Scales of any sign; what is not finite stays so.
    most : int
        Exponent of the largest one: 126 where the stored 255 stands for NaN, otherwise 127.

    Examples
    --------
    >>> import torch
    >>> from qformats.numbers.powers import nearest_power
    >>> nearest_power(torch.tensor([0.3, -5.0])).tolist()
    [0.25, 4.0]
    """
    import torch

    exponent = torch.log2(values.abs().to(torch.float64)).round().clamp(-_BIAS, most)
    # There are no negative scales.
    power = torch.exp2(exponent).to(torch.float32)
    return torch.where(values.isfinite(), power, values.to(torch.float32))


def half_powers(exponents: Tensor) -> Tensor:
    """Scales of stored exponents: half of ``2 ** (e - 127)``, float32.

    Examples
    --------
    >>> import torch
    >>> from qformats.numbers.powers import half_powers
    >>> half_powers(torch.tensor([127, 130], dtype=torch.uint8)).tolist()
    [0.5, 4.0]
    """
    import torch

    return torch.exp2(exponents.to(torch.float64) - _BIAS).to(torch.float32)


def stored_exponents(scale: Tensor) -> Tensor:
    """Exponents of scales, the inverse of :func:`half_powers`: uint8.

    Examples
    --------
    >>> import torch
    >>> from qformats.numbers.powers import stored_exponents
    >>> stored_exponents(torch.tensor([0.5, 4.0])).tolist()
    [127, 130]
    """
    import torch

    return torch.log2(scale.to(torch.float64)).add(_BIAS).to(torch.uint8)
