"""A slice of a quantized tensor into another quantized format: unchanged if possible, else rounded and measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING

from qformats.errors import ConfigError, NotExactError
from qformats.interfaces import Packer, Quantizer
from qformats.tensors import PackedTensor, QuantizedTensor

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Measure", "holds", "requantize", "total", "transcode"]

_CHUNK = 1 << 20
"""Weights that are compared at a time."""


@dataclass(frozen=True)
class Measure:
    """What became of the values of one or more slices.

    Attributes
    ----------
    weights, exact : int
        How many there are, and how many are in slices that kept every value.
    squared_error, squared : float
        Sums over the weights, in squared weight units: of the change, and of the values before.
    max_error : float
        Largest change of one weight, weight units.
    reason : str
        Why the first of the slices that were rounded could not be kept.
    """

    weights: int
    exact: int
    squared_error: float = 0.0
    squared: float = 0.0
    max_error: float = 0.0
    reason: str = ""

    @property
    def relative_error(self) -> float:
        """Root of the mean squared change, relative to the root of the mean square; 0 for zeros."""
        return float((self.squared_error / self.squared) ** 0.5) if self.squared else 0.0

    def to_list(self) -> list[object]:
        """Plain data for the journal."""
        return list(astuple(self))


def total(measures: Iterable[Measure]) -> Measure:
    """Sum of measures, in their order."""
    weights = exact = 0
    squared_error = squared = max_error = 0.0
    reason = ""
    for m in measures:
        weights, exact = weights + m.weights, exact + m.exact
        squared_error, squared = squared_error + m.squared_error, squared + m.squared
        max_error, reason = max(max_error, m.max_error), reason or m.reason
    return Measure(weights, exact, squared_error, squared, max_error, reason)


def transcode(
    part: PackedTensor, source: Packer, packer: Packer, quantizer: Quantizer
) -> tuple[PackedTensor, Measure]:
    """Keep every value of a slice if the other format has it; if it has not, keep the codes, or round them all.

    Codes stay what they are where nothing but their scales must be rounded.

    Parameters
    ----------
    part : PackedTensor
        The slice, in the format of `source`.
    source, packer : Packer
        Formats before and after.
    quantizer : Quantizer
        Rounds what cannot be kept.
    """
    weights = _weights(part.shape)
    quantized = source.unpack(part)
    try:
        return packer.pack(packer.hold(quantized)), Measure(weights, weights)
    except NotExactError as error:
        reason = error.reason
    near = _with_storable_scales(quantized, packer)
    try:
        packed = packer.pack(packer.hold(near))
    except NotExactError:
        return requantize(part, source, packer, quantizer, reason)
    errors = _compare(quantized.dequantize(), packer.dequantize(packed))
    return packed, Measure(weights, 0, *errors, f"{reason} (scales are rounded, codes are kept)")


def _with_storable_scales(quantized: QuantizedTensor, packer: Packer) -> QuantizedTensor:
    assert packer.grid is not None
    minimum = quantized.minimum
    return replace(
        quantized,
        scale=packer.grid.storable(quantized.scale.float()),
        minimum=None if minimum is None else packer.grid.storable(minimum.float()),
    )


def requantize(
    part: PackedTensor, source: Packer, packer: Packer, quantizer: Quantizer, reason: str
) -> tuple[PackedTensor, Measure]:
    """Round a slice once more, and measure by how much its values change."""
    before = source.dequantize(part)
    packed = quantizer.encode(before, packer)
    squared_error, squared, max_error = _compare(before, packer.dequantize(packed))
    return packed, Measure(_weights(part.shape), 0, squared_error, squared, max_error, reason)


def holds(part: PackedTensor, source: Packer, packer: Packer) -> str:
    """Why a slice cannot be kept in another format; empty if it can."""
    try:
        if packer.dense_dtype is None:
            packer.hold(source.unpack(part))
        else:
            before = source.dequantize(part)
            after = packer.dequantize(packer.encode_reference(before))
            changed = int((before != after).sum())
            if changed:
                return f"{packer.dense_dtype} changes {changed} of {before.numel()} values"
    except NotExactError as error:
        return error.reason
    return ""


def _weights(shape: Sequence[int]) -> int:
    count = 1
    for dim in shape:
        count *= dim
    return count


def _compare(before: Tensor, after: Tensor) -> tuple[float, float, float]:
    """Squared change, squared values, and largest change."""
    if before.shape != after.shape:
        raise ConfigError("shape after packing", tuple(after.shape), f"{tuple(before.shape)}")
    squared_error = squared = largest = 0.0
    before, after = before.reshape(-1), after.reshape(-1)
    for start in range(0, len(before), _CHUNK):
        old, new = before[start : start + _CHUNK], after[start : start + _CHUNK]
        change = (new - old).double()
        squared_error += float(change.square().sum())
        squared += float(old.double().square().sum())
        largest = max(largest, float(change.abs().max()))
    return squared_error, squared, largest
