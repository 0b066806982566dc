"""The search of AWQ: by which power of its inputs' size each column is scaled, and whether by its weights' size too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qformats_awq.ranges import output_error, with_best_ranges

if TYPE_CHECKING:
    from torch import Tensor

    from qformats import Packer, QuantizedTensor
    from qformats.calibration import Layer, SharedInput

__all__ = ["Method", "candidates", "choose"]

_LEAST = 1e-4
"""Factors before they are normalised are at least this, and it is added to weights, as in AutoAWQ."""
_FINALISTS = 3
"""Candidates whose ranges are searched."""


@dataclass(frozen=True)
class Method:
    """Options of the quantizer.

    Attributes
    ----------
    grid : int
        Exponents that are tried, from 0 on: ``i / grid``.
    duo : str
        ``"no"`` to scale by inputs alone, ``"yes"`` to divide by the weights' size too, ``"both"`` to try both.
    clip : bool
        Whether to search for the range of every block of the scaled weights as well.
    """

    grid: int = 20
    duo: str = "both"
    clip: bool = True


def candidates(inputs: Tensor, weights: Tensor, method: Method) -> Iterator[Tensor]:
    """Factors to try.

    Parameters
    ----------
    inputs : Tensor
        float32, ``(F,)``: mean magnitude of what each factor's columns are multiplied with.
    weights : Tensor
        float32, ``(F,)``: mean magnitude of their weights relative to the largest of their blocks.
    method : Method
        What to try.

    Examples
    --------
    >>> import torch
    >>> from qformats_awq.search import Method, candidates
    >>> found = candidates(torch.tensor([1.0, 16.0]), torch.ones(2), Method(grid=2, duo="no"))
    >>> [factors.tolist() for factors in found]
    [[1.0, 1.0], [0.5, 2.0]]
    """
    import torch

    # A column that is always zero says nothing of how far apart the others are.
    alive = inputs > 0
    sizes = torch.where(alive, inputs, inputs[alive].min() if bool(alive.any()) else 1.0)
    for duo in {"no": (False,), "yes": (True,), "both": (False, True)}[method.duo]:
        for step in range(method.grid):
            power = step / method.grid
            factors = sizes.pow(power)
            if duo:
                factors = factors / (weights.pow(1 - power) + _LEAST)
            factors = factors.clamp_min(_LEAST)
            factors = factors / (factors.max() * factors.min()).sqrt()
            yield torch.where(factors.isfinite() & (factors > 0), factors, 1.0)


def choose(shared: SharedInput, method: Method) -> Tensor | None:
    """Factors of the columns of an input by which the outputs of its layers change least; None to scale nothing.

    The error is that of the outputs, ``tr((Q - W) H (Q - W)ᵀ)`` with the second moments ``H`` of the input, once the
    scaled weights are rounded by the rule of their format and scaled back; experts count by their share of the tokens.
    With a search of ranges, the best few and no scaling at all are compared by what that leaves.

    Parameters
    ----------
    shared : SharedInput
        The layers, and their input.
    method : Method
        What to try.
    """
    import torch

    index, count = shared.index, shared.count
    inputs = _by_factor(shared.magnitude, index, count)
    weights = inputs.new_ones(count)
    if method.duo != "no":
        weights = _by_factor(_relative(shared.layers), index, count)
    tried = [shared.exact(factors) for factors in candidates(inputs, weights, method)]
    # Whatever is tried, scaling nothing is.
    tried.insert(0, torch.ones_like(inputs))
    errors = _errors(shared, tried, _plainly)
    if method.clip:
        order = sorted(range(1, len(tried)), key=errors.__getitem__)
        tried = [tried[0], *(tried[number] for number in order[:_FINALISTS])]
        errors = _errors(shared, tried, with_best_ranges)
    best = min(range(len(tried)), key=errors.__getitem__)
    return tried[best] if bool((tried[best] != 1).any()) else None


def _errors(
    shared: SharedInput,
    tried: Sequence[Tensor],
    rounding: Callable[[Tensor, Packer, Tensor], QuantizedTensor],
) -> list[float]:
    """Errors of all layers' outputs with each of some factors."""
    second = shared.moments.second
    errors = [0.0] * len(tried)
    for layer, share in zip(shared.layers, shared.shares, strict=True):
        if not share:
            continue
        weight = layer.weight
        for number, factors in enumerate(tried):
            along = factors[shared.index]
            reaching = second / along.outer(along) if rounding is not _plainly else second
            change = rounding(weight * along, layer.packer, reaching).dequantize() / along - weight
            errors[number] += share * output_error(change, second)
    return errors


def _plainly(weight: Tensor, packer: Packer, _: Tensor) -> QuantizedTensor:
    return packer.quantize_reference(weight)


def _relative(layers: Sequence[Layer]) -> Tensor:
    """Mean magnitude of each column's weights, relative to the largest of their block, over all layers."""
    rows = 0
    total: Tensor | None = None
    for layer in layers:
        assert layer.packer.grid is not None
        size = layer.weight.abs()
        columns = layer.packer.grid.block_size or size.shape[1]
        if size.shape[1] % columns:
            columns = size.shape[1]
        blocks = size.view(size.shape[0], -1, columns)
        relative = (blocks / (blocks.amax(2, keepdim=True) + 1e-6)).view_as(size).sum(0)
        total, rows = relative if total is None else total + relative, rows + size.shape[0]
    assert total is not None
    return total / rows


def _by_factor(columns: Tensor, index: Tensor, count: int) -> Tensor:
    """Means of the columns that share a factor."""
    sums = columns.new_zeros(count).index_add_(0, index, columns)
    return sums / columns.new_zeros(count).index_add_(0, index, columns.new_ones(len(columns)))
