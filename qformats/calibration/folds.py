"""Factors of a layer's input columns that something in front takes over, so that the model computes what it did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Fold", "Part", "exact_factors", "scaled"]


@dataclass(frozen=True, eq=False)
class Part:
    """A parameter that takes part in a fold.

    Attributes
    ----------
    name : str
        Name of the parameter within its block.
    dim : int
        Dimension along which factors run, of the matrix ``[out, in]`` or of the vector.
    index : Tensor
        int64, as long as that dimension: which factor each position has; -1 for none.
    divides : bool
        Whether it is divided by its factors, as what is in front of the layers is, and not multiplied.
    shift : float
        What the model adds to the parameter before it multiplies with it: 1 for the norms of Gemma.

    Examples
    --------
    >>> import torch
    >>> from qformats.calibration.folds import Part
    >>> norm = Part("input_layernorm.weight", 0, torch.arange(2), divides=True)
    >>> norm.of(torch.tensor([3.0, 8.0]), torch.tensor([1.0, 4.0])).tolist()
    [3.0, 2.0]
    """

    name: str
    dim: int
    index: Tensor
    divides: bool = False
    shift: float = 0.0

    def spread(self, factors: Tensor) -> Tensor:
        """Factor of every position, to be broadcast over a matrix where the parameter is one."""
        import torch

        index = self.index.to(factors.device)
        return torch.where(index < 0, factors.new_ones(()), factors[index.clamp_min(0)])

    def of(self, values: Tensor, factors: Tensor) -> Tensor:
        """The parameter with these factors in it.

        Parameters
        ----------
        values : Tensor
            float32, the vector, or the matrix ``[out, in]``.
        factors : Tensor
            float32, those of the fold.
        """
        along = self.spread(factors.to(values.device, values.dtype))
        if values.ndim == 2 and self.dim == 0:
            along = along.unsqueeze(1)
        if self.shift:
            values = values + self.shift
        values = values / along if self.divides else values * along
        return values - self.shift if self.shift else values


@dataclass(frozen=True, eq=False)
class Fold:
    """Layers of one input, and what in front of them can take over the factors of its columns.

    Attributes
    ----------
    before : str
        Module in front, by its name within the block: a norm, or a linear layer.
    layers : tuple of str
        Modules that the input reaches, by their names within the block; all of them multiply it with a matrix.
    parts : tuple of Part
        Every parameter that has to change for the model to compute what it did.
    index : Tensor
        int64, ``(K,)``: which factor each column of the input has. Where queries share a value, columns share one.
    count : int
        Number of factors.
    """

    before: str
    layers: tuple[str, ...]
    parts: tuple[Part, ...]
    index: Tensor
    count: int


def scaled(values: Tensor, changes: Sequence[tuple[Part, Tensor]]) -> Tensor:
    """A parameter with the factors of all folds in it that it takes part in; see :meth:`Part.of`."""
    for part, factors in changes:
        values = part.of(values, factors)
    return values


def exact_factors(wanted: Tensor, plain: Mapping[Part, Tensor], dtypes: Mapping[Part, str]) -> Tensor:
    """Factors near those wanted that fold without an error into the parameters which stay plain numbers.

    A weight that is quantized takes any factor before it is rounded; a norm that is kept in bfloat16 would be rounded
    once more, and with it every column behind it. Where one vector is kept, it is rounded first, and the factors are
    those that it then stands for. Where several parameters are kept, the factors are powers of two.

    Parameters
    ----------
    wanted : Tensor
        float32, positive, one per factor of the fold.
    plain : mapping of Part to Tensor
        The parameters that stay plain, float32.
    dtypes : mapping of Part to str
        How these are stored: ``"f32"``, ``"f16"`` or ``"bf16"``.

    Examples
    --------
    >>> import torch
    >>> from qformats.calibration.folds import Part, exact_factors
    >>> norm = Part("norm.weight", 0, torch.arange(2), divides=True)
    >>> values = torch.tensor([1.0, 1.0])
    >>> found = exact_factors(torch.tensor([3.0, 2.0]), {norm: values}, {norm: "bf16"})
    >>> found.tolist(), (values / found).bfloat16().float().mul(found).tolist()
    ([2.994152069091797, 2.0], [1.0, 1.0])
    """
    if all(dtype == "f32" for dtype in dtypes.values()):
        return wanted
    if len(plain) == 1:
        ((part, values),) = plain.items()
        if (
            part.divides
            and values.ndim == 1
            and len(part.index) == len(wanted)
            and bool((part.index >= 0).all())
        ):
            return _implied(wanted, part, values, dtypes[part])
    return _powers_of_two(wanted, plain, dtypes)


def _rounded(values: Tensor, dtype: str) -> Tensor:
    from qformats.numbers.dtypes import torch_dtype

    return values.to(torch_dtype(dtype)).float()


def _implied(wanted: Tensor, part: Part, values: Tensor, dtype: str) -> Tensor:
    """What a vector stands for once it is divided and rounded."""
    import torch

    along = part.index.to(wanted.device)
    kept = _rounded(part.of(values, wanted), dtype) + part.shift
    before = values + part.shift
    ratio = before / kept
    # A rounding that turns a number to 0, or beyond it, has no factor that undoes it.
    usable = ratio.isfinite() & (ratio > 0) & (ratio < 2 * wanted[along]) & (2 * ratio > wanted[along])
    found = torch.ones_like(wanted)
    found[along] = torch.where(usable, ratio, 1.0)
    return found


def _powers_of_two(wanted: Tensor, plain: Mapping[Part, Tensor], dtypes: Mapping[Part, str]) -> Tensor:
    """Nearest powers of two, and 1 where one of the parameters cannot hold even that."""
    import torch

    factors = wanted.log2().round().exp2()
    exact = torch.ones_like(factors, dtype=torch.bool)
    for part, values in plain.items():
        changed = part.of(values, factors)
        same = (_rounded(changed, dtypes[part]) == changed) & changed.isfinite()
        if part.shift:
            same &= (changed + part.shift) * part.spread(factors) == values + part.shift
        if same.ndim == 2:
            same = same.all(1 - part.dim)
        of = part.index.to(factors.device)
        exact[of[(of >= 0) & ~same.to(of.device)]] = False
    return torch.where(exact, factors, 1.0)
