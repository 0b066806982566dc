"""A slice of a quantized tensor into another quantized format: unchanged if possible, else rounded and measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Protocol

from qformats.errors import ConfigError, NonFiniteError, NotExactError
from qformats.interfaces.packer import PackedTensor, Packer
from qformats.interfaces.rows import cut, join
from qformats.numbers.dtypes import torch_dtype
from qformats.numbers.error import relative_error
from qformats.numbers.quantized import QuantizedTensor

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Encoder", "Measure", "compared", "requantize", "total", "transcode", "why_not"]

_CHUNK = 1 << 20
"""Weights that are compared at a time."""
_HOPE = 2
"""Halvings in a row that may find nothing to keep before a piece is rounded as a whole."""


class Encoder(Protocol):
    """What quantizes and packs: a quantizer, or one that weighs errors."""

    def encode(self, dense: Tensor, packer: Packer) -> PackedTensor:
        """Quantize and pack."""


@dataclass(frozen=True)
class Measure:
    """How the values of one or more slices changed.

    Attributes
    ----------
    weights, exact : int
        How many there are, and how many are in rows that kept every value.
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
        """Of all weights together."""
        return relative_error(self.squared_error, self.squared)

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


def transcode(part: PackedTensor, packer: Packer, quantizer: Encoder) -> tuple[PackedTensor, Measure]:
    """Keep every value of a slice if the other format has it; otherwise keep the codes, or round.

    Rows that fit are kept beside rows that do not, as far as halving the slice tells them apart. Codes stay the same
    if only their scales must be rounded.

    Parameters
    ----------
    part : PackedTensor
        The slice.
    packer : Packer
        Format after.
    quantizer : Encoder
        Rounds what cannot be kept.
    """
    by_rows = part.packer.row_step(part.shape) == 1 and packer.row_step(part.shape) == 1
    pieces = list(_pieces(part, packer, quantizer, _HOPE if by_rows else 0))
    if len(pieces) == 1:
        return pieces[0]
    return join([packed for packed, _ in pieces]), total(measure for _, measure in pieces)


def _pieces(
    part: PackedTensor, packer: Packer, quantizer: Encoder, hope: int
) -> Iterator[tuple[PackedTensor, Measure]]:
    """Rows from first to last, in pieces of which each is kept or rounded as a whole.

    A piece that does not fit is halved as long as one of the last `hope` halvings has found a half that does.
    """
    weights, rows = _weights(part.shape), part.shape[0]
    quantized = part.unpack()
    try:
        yield packer.pack(packer.represent(quantized)), Measure(weights, weights)
    except NotExactError as error:
        reason = error.reason
    else:
        return
    if hope and rows > 1:
        halves = [cut(part, 0, rows // 2), cut(part, rows // 2, rows)]
        fits = [_fits(half, packer) for half in halves]
        if any(fits) or hope > 1:
            for half in halves:
                yield from _pieces(half, packer, quantizer, _HOPE if any(fits) else hope - 1)
            return
    yield _rounded(part, quantized, packer, quantizer, reason)


def _fits(part: PackedTensor, packer: Packer) -> bool:
    try:
        packer.represent(part.unpack())
    except NotExactError:
        return False
    return True


def _rounded(
    part: PackedTensor,
    quantized: QuantizedTensor,
    packer: Packer,
    quantizer: Encoder,
    reason: str,
) -> tuple[PackedTensor, Measure]:
    """The same codes with rounded scales, if that is enough; otherwise quantized again."""
    near = _with_storable_scales(quantized, packer)
    if near is not None:
        try:
            packed = packer.pack(packer.represent(near))
        except NotExactError:
            pass
        else:
            errors = _compare(quantized.dequantize(), packed.dequantize())
            reason = f"{reason} (scales are rounded, codes are kept)"
            return packed, Measure(_weights(part.shape), 0, *errors, reason)
    return requantize(part, packer, quantizer, reason)


def _with_storable_scales(quantized: QuantizedTensor, packer: Packer) -> QuantizedTensor | None:
    """The tensor with scales that the format stores; None where they are so small that rounding changes them much."""
    import torch

    grid = packer.grid
    assert grid is not None
    near = grid.nearest(quantized)
    least, scale = torch.finfo(torch_dtype(grid.scale_dtype)).tiny, near.scale
    if not bool(((scale.abs() >= least) | (quantized.scale == 0)).all() & scale.isfinite().all()):
        return None
    return near


def requantize(
    part: PackedTensor, packer: Packer, quantizer: Encoder, reason: str
) -> tuple[PackedTensor, Measure]:
    """Round a slice again, and measure how much its values change."""
    before = part.dequantize()
    packed = quantizer.encode(before, packer)
    squared_error, squared, max_error = _compare(before, packed.dequantize())
    return packed, Measure(_weights(part.shape), 0, squared_error, squared, max_error, reason)


def compared(before: PackedTensor, after: PackedTensor, reason: str) -> Measure:
    """How much the values of a slice differ from those in its previous format."""
    old, new = before.dequantize(), after.dequantize()
    return Measure(_weights(after.shape), 0, *_compare(old, new), reason)


def why_not(part: PackedTensor, packer: Packer) -> str:
    """Why a slice cannot be kept in another format; empty if it can."""
    try:
        if packer.quantizes:
            packer.represent(part.unpack())
            return ""
        # Plain numbers are compared as they are: a float32 does not represent a float64.
        before = part.dequantize() if part.packer.quantizes else next(iter(part.fields.values()))
        after = next(iter(packer.encode_reference(before).fields.values()))
    except NotExactError as error:
        return error.reason
    except NonFiniteError as error:
        return error.found
    changed = int((before.double() != after.double()).sum())
    return f"{packer.dense_dtype} changes {changed} of {before.numel()} values" if changed else ""


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
