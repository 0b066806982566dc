"""Cheap insurance: the first rows of every tensor that is written are unpacked again and compared with their codes.

A plugin whose `pack` and `unpack` contradict each other would otherwise write files that hold something other than the
model, without any error.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from qformats.errors import ConfigError, Described, PluginError, QFormatsError
from qformats.exporting.plan import Action, TensorPlan
from qformats.exporting.transcode import Measure
from qformats.interfaces.packer import PackedTensor, Packer
from qformats.interfaces.quantizer import Quantizer
from qformats.interfaces.rows import cut
from qformats.numbers import QuantizedTensor

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SelfCheck"]

_WEIGHTS = 1 << 13
"""Weights checked per tensor, at least two steps of rows: a millisecond, where a whole slice takes a hundred."""
_BUG = "The plugin contradicts itself: report it to its authors"


class SelfCheck:
    """Checks the first rows of each tensor of one export.

    Formats that can be packed only as a whole are checked once per shape: they have no first rows.
    """

    def __init__(self) -> None:
        self._seen: set[tuple[str, tuple[int, ...]]] = set()

    def __call__(
        self,
        tensor: TensorPlan,
        part: PackedTensor,
        packed: PackedTensor,
        quantizer: Quantizer,
        measure: Measure | None,
    ) -> None:
        """Compare a tensor's packed first slice with what it unpacks to.

        Parameters
        ----------
        tensor : TensorPlan
            What was done with the tensor.
        part : PackedTensor
            The slice as the source stores it.
        packed : PackedTensor
            The same rows, in their new format.
        quantizer : Quantizer
            Chose the codes of plain numbers.
        measure : Measure or None
            How quantized ones changed.

        Raises
        ------
        ConfigError
            If they do not agree, naming the format and the tensor.
        """
        packer = packed.packer
        if packed is part or not packer.quantizes or not packer.spec.level or not all(packed.shape):
            return
        step = packer.row_step(packed.shape)
        if not step and (packer.name, packed.shape) in self._seen:
            return
        self._seen.add((packer.name, packed.shape))
        rows = packed.shape[0]
        if step:
            width = math.prod(packed.shape) // rows
            rows = min(rows, max(2 * step, _WEIGHTS // width // step * step))
            rows = 1 if packer.by_matrix(packed.shape) else rows
            packed = cut(packed, 0, rows)
        told = f"{packer.name}: tensor {tensor.name!r}"
        try:
            rejects = "bytes that unpack rejects"
            codes = packer.unpack(packed)
            rejects = "codes that pack rejects"
            again = packer.unpack(packer.pack(codes))
        except PluginError:
            raise
        except QFormatsError as error:
            found = Described(f"{rejects} ({error})")
            raise ConfigError(told, found, "those that it writes", _BUG) from error
        _same(f"{told} packed and unpacked again", again, codes)
        transcoded = measure is not None and measure.exact == measure.weights
        transcoded = transcoded and part.packer.row_step(part.shape) == 1
        own = type(packer).dequantize is not Packer.dequantize
        # Of codes that nothing else decodes there is nothing to compare, and matrices may be large.
        if not step and not own and not transcoded:
            return
        values = codes.dequantize()
        _equal(f"{told} decoded", packer.dequantize(packed).reshape(values.shape), values)
        one = tensor.importance is None or len(tensor.importance) == 1 or rows == 1
        if tensor.action is Action.QUANTIZE and step and one:
            import torch

            (dense,) = part.fields.values()
            head = dense[:rows].reshape(values.shape)
            weights = None if tensor.importance is None else torch.from_numpy(tensor.importance[0])
            _same(f"{told} unpacked", codes, quantizer.quantize(head, packer, weights))
        if transcoded:
            before = cut(part, 0, rows).dequantize().reshape(values.shape)
            _equal(f"{told} transcoded", values, before)


def _same(what: str, found: QuantizedTensor, expected: QuantizedTensor) -> None:
    """Refuse other codes; then other values, which other parameters give."""
    if found.shape != expected.shape:
        raise ConfigError(f"{what}: shape", found.shape, str(expected.shape), _BUG)
    alike = found.codes.dtype == expected.codes.dtype and found.codes.equal(expected.codes)
    wrong = 0 if alike else int((found.codes.int() != expected.codes.int()).sum())
    if wrong:
        raise ConfigError(
            f"{what}: codes",
            Described(f"{wrong} of {found.codes.numel()} that differ"),
            "the packed ones",
            _BUG,
        )
    if not _parameters_alike(found, expected):
        _equal(what, found.dequantize(), expected.dequantize())


def _parameters_alike(found: QuantizedTensor, expected: QuantizedTensor) -> bool:
    """Whether the same codes mean the same values, as is nearly always told without decoding them."""
    import torch

    if found.block_size != expected.block_size:
        return False
    names = ("scale", "zero_point", "minimum", "codebook", "g_idx")
    pairs = [(getattr(found, name), getattr(expected, name)) for name in names]
    return all(
        a.dtype == b.dtype and a.equal(b)
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        else type(a) is type(b) and not isinstance(a, torch.Tensor) and a == b
        for a, b in pairs
    )


def _equal(what: str, found: Tensor, expected: Tensor) -> None:
    wrong = 0 if found.equal(expected) else int((found != expected).sum())
    if wrong:
        different = Described(f"{wrong} of {found.numel()} that differ")
        raise ConfigError(f"{what}: values", different, "those of the codes", _BUG)
