"""Canonical tensors and parameters with scales in two levels.

``scale = d * n`` and ``minimum = -dmin * m`` are exact in float32: ``d`` and ``dmin`` have 11 significant bits, the
whole numbers ``n`` and ``m`` at most 8. Which numbers they came from cannot be told from the product: both ride along.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qformats.numbers import GridParams, NestedScales, QuantizedTensor

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from qformats_gguf.superblocks.layout import SuperLayout

__all__ = ["Parts", "TwoLevelParams", "TwoLevelTensor", "carried_by"]

_BYTE = (-128, 127)
"""What a stored whole number of any type is within."""


@dataclass(frozen=True, eq=False)
class Parts:
    """Scales as they are stored, on a CPU.

    Attributes
    ----------
    halves : Tensor
        float16 ``(N, blocks per row, 1)``: scale of the scales; with a second one, of the minima, ``(..., 2)``.
    scales : Tensor
        int8 ``(N, scales per row)``.
    minima : Tensor
        int8, shape of `scales`; zeros where a type has none.
    """

    halves: Tensor
    scales: Tensor
    minima: Tensor

    def expand(self, kind: SuperLayout) -> tuple[Tensor, Tensor | None]:
        """Scale and minimum of each sub-block, float32 ``(N, scales per row)``."""
        import torch

        def product(half: Tensor, whole: Tensor) -> Tensor:
            split = whole.view(*half.shape, kind.scales).to(torch.float32)
            return split.mul_(half.to(torch.float32).unsqueeze(-1)).view(whole.shape)

        scale = product(self.halves[..., 0], self.scales)
        if not kind.minimum:
            return scale, None
        return scale, product(self.halves[..., 1], self.minima).neg_()

    def nested(self, device: torch.device, *ranges: tuple[int, int]) -> tuple[NestedScales, ...]:
        """Scales, and with a second range minima, as the two numbers of which each is a product.

        Parameters
        ----------
        device : torch.device
            Where to.
        *ranges : tuple of int
            Least and largest whole number of scales; of minima.
        """
        import torch

        # A minimum is stored with the other sign.
        pairs = ((self.halves[..., 0], self.scales), (-self.halves[..., -1], self.minima))
        return tuple(
            NestedScales(
                outer.to(device, torch.float32),
                inner.to(device, torch.float32),
                torch.arange(low, high + 1, dtype=torch.float32, device=device),
            )
            for (outer, inner), (low, high) in zip(pairs, ranges, strict=False)
        )

    def take_rows(self, order: Tensor) -> Parts:
        """Those of some rows."""
        order = order.to(self.scales.device)
        return Parts(self.halves[order], self.scales[order], self.minima[order])


@dataclass(frozen=True, eq=False, repr=False)
class TwoLevelParams(GridParams):
    """Parameters with the parts that they are stored as."""

    parts: Parts | None = None


@dataclass(frozen=True, eq=False, repr=False)
class TwoLevelTensor(QuantizedTensor):
    """A canonical tensor that carries its scales as they are stored."""

    parts: Parts | None = None

    @property
    def nested_scales(self) -> tuple[NestedScales, ...]:
        """Scales as they are stored, on the tensor's device."""
        if self.parts is None:
            return ()
        return self.parts.nested(self.codes.device, *[_BYTE] * (1 if self.minimum is None else 2))

    def take_rows(self, order: Tensor) -> QuantizedTensor:
        """The same tensor with its rows in another order; see :meth:`qformats.QuantizedTensor.take_rows`."""
        taken = super().take_rows(order)
        assert isinstance(taken, TwoLevelTensor)
        return taken if self.parts is None else replace(taken, parts=self.parts.take_rows(order))


def carried_by(quantized: QuantizedTensor) -> Parts | None:
    """Stored scales that a tensor carries."""
    return quantized.parts if isinstance(quantized, TwoLevelTensor) else None
