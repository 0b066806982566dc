"""Double quantization: the scales of 4-bit blocks, quantized to 8 bits themselves.

``scale = table[code] * absmax + offset``, two roundings to float32, with one `absmax` for 256 scales.
Source: bitsandbytes:bitsandbytes/functional.py (``quantize_4bit``, ``quantize_blockwise``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qformats.errors import ConfigError
from qformats.numbers import GridParams, QuantizedTensor
from qformats_bitsandbytes import tables
from qformats_bitsandbytes.quant_state import NESTED_BLOCK

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["RULES", "Nested", "NestedParams", "NestedTensor", "carried_by", "double_quantize", "reproduce"]

RULES = ("nearest", "bnb-cpu")
"""The nearest code, as on a GPU; or what the compiled code for x86 processors does."""
_SMALLEST = 1e-38
_STEPS = 65535
"""The rule ``bnb-cpu`` looks codes up in a table of so many steps."""


@dataclass(frozen=True, eq=False)
class Nested:
    """Quantized scales.

    Attributes
    ----------
    codes : Tensor
        uint8, ``(blocks,)``.
    absmax : Tensor
        float32, ``(ceil(blocks / 256),)``, weight units.
    table : Tensor
        float32, ``(256,)``.
    offset : float
        Weight units, a float32 number.
    """

    codes: Tensor
    absmax: Tensor
    table: Tensor
    offset: float

    def decode(self) -> Tensor:
        """Scales, float32 ``(blocks,)``."""
        import torch

        spread = self.absmax.repeat_interleave(NESTED_BLOCK)[: self.codes.numel()]
        products = self.table[self.codes.long()] * spread
        return products + torch.tensor(self.offset, dtype=torch.float32, device=products.device)


@dataclass(frozen=True, eq=False)
class NestedParams(GridParams):
    """Parameters whose scales came out of double quantization, with the bytes that they are stored as."""

    nested: Nested | None = None


@dataclass(frozen=True, eq=False)
class NestedTensor(QuantizedTensor):
    """A canonical tensor that also carries its quantized scales: they cannot be found again from the scales alone."""

    nested: Nested | None = None


def double_quantize(scale: Tensor, rule: str = "nearest") -> Nested:
    """Quantize scales.

    Parameters
    ----------
    scale : Tensor
        float32, ``(blocks,)``, finite. Not modified.
    rule : str
        One of :data:`RULES`.

    Raises
    ------
    ConfigError
        If the rule does not exist.
    """
    import torch

    if rule not in RULES:
        raise ConfigError("rule of double quantization", rule, " or ".join(RULES))
    table = torch.tensor(tables.DYNAMIC, dtype=torch.float32, device=scale.device)
    # torch's own mean depends on the order in which a processor adds.
    mean = scale.mean() if rule == "bnb-cpu" else scale.double().mean().float()
    rest = torch.nn.functional.pad(scale - mean, (0, -scale.numel() % NESTED_BLOCK)).view(-1, NESTED_BLOCK)
    absmax = rest.abs().amax(-1)
    unit = (rest * (1.0 / absmax.clamp(min=_SMALLEST))[:, None]).clamp(-1, 1)
    middles = (table[1:] + table[:-1]) / 2
    if rule == "bnb-cpu":
        steps = torch.arange(_STEPS + 1, dtype=torch.float32, device=scale.device) * 2.0 / _STEPS - 1.0
        found = torch.bucketize(steps, middles)[((unit + 1.0) * 0.5 * _STEPS + 0.5).long()]
        codes = torch.where(absmax[:, None] == 0, 0, found)
    else:
        codes = torch.bucketize(unit, middles)
    return Nested(codes.to(torch.uint8).flatten()[: scale.numel()], absmax, table, float(mean))


def reproduce(scale: Tensor, carried: Nested | None = None) -> Nested | None:
    """Quantized scales that decode to exactly these, ``(blocks,)``; ``None`` if there are none.

    Those that a tensor carries are taken if they are the same scales.
    """
    for nested in (carried, double_quantize(scale) if bool(scale.isfinite().all()) else None):
        if nested is not None and nested.codes.numel() == scale.numel():
            if bool((nested.decode() == scale).all()):
                return nested
    return None


def carried_by(quantized: QuantizedTensor) -> Nested | None:
    """Quantized scales that a tensor carries."""
    return quantized.nested if isinstance(quantized, NestedTensor) else None
