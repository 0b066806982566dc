"""Grids of equally spaced levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qformats.errors import ConfigError, Described
from qformats.numbers.division import quotient
from qformats.numbers.grid import SHRINK, Grid, GridParams
from qformats.numbers.quantized import QuantizedTensor, expand_blocks

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AffineGrid"]


@dataclass(frozen=True)
class AffineGrid(Grid):
    """Equally spaced levels: ``scale * (code - zero_point)`` or ``scale * code + minimum``.

    Attributes
    ----------
    bits : int
        Width of a code.
    block_size : int
        Columns that share their parameters; 0 for the whole row.
    kind : str
        ``"symmetric"``: the zero point is fixed. ``"zero_point"``: an integer zero point per block.
        ``"minimum"``: a float minimum per block.
    scale_dtype : str
        Dtype of the stored scale (and minimum).
    zero : int or None
        Zero point of a symmetric grid; ``2**(bits - 1)`` if not given.
    low : int
        Smallest code in use; a symmetric grid without its lowest level starts at 1.

    Examples
    --------
    >>> import torch
    >>> from qformats import AffineGrid
    >>> grid = AffineGrid(4, block_size=4, kind="zero_point")
    >>> codes, params = grid.reference(torch.tensor([[0.0, 1.0, 2.0, 3.0]]))
    >>> codes.tolist(), params.scale.item(), params.zero_point.item()
    ([[0, 5, 10, 15]], 0.199951171875, 0)
    >>> grid.decode(codes, params).tolist()
    [[0.0, 0.999755859375, 1.99951171875, 2.999267578125]]
    """

    bits: int
    block_size: int
    kind: str = "symmetric"
    scale_dtype: str = "f16"
    zero: int | None = None
    low: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ConfigError("bits", self.bits, "1 to 8")
        self._check()
        if self.kind == "symmetric" and not self.low < self.center < self.levels - 1:
            allowed = f"a code between `low` ({self.low}) and the last ({self.levels - 1})"
            raise ConfigError("zero", self.center, allowed)
        if self.kind not in ("symmetric", "zero_point", "minimum"):
            raise ConfigError("kind", self.kind, "symmetric, zero_point or minimum")

    @property
    def levels(self) -> int:  # type: ignore[override]
        """Number of codes."""
        return 1 << self.bits

    @property
    def center(self) -> int:
        """Code that stands for zero in a symmetric grid."""
        return (1 << (self.bits - 1)) if self.zero is None else self.zero

    def _range(self, low: Tensor, high: Tensor) -> GridParams:
        """Storable parameters that cover ``[low, high]``, both ``(N, blocks)``."""
        import torch

        top = self.levels - 1
        if self.kind == "symmetric":
            reach = torch.maximum(quotient(-low, self.center - self.low), quotient(high, top - self.center))
            return GridParams(self.storable(reach))
        if self.kind == "minimum":
            return GridParams(self.storable(quotient(high - low, top)), minimum=self.storable(low))
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = self.storable(quotient(high - low, top))
        zero = torch.where(scale > 0, (-low / scale).round(), torch.zeros_like(scale))
        return GridParams(scale, zero_point=zero.clamp(0, top).to(torch.int32))

    def fit(self, weight: Tensor, importance: Tensor | None = None) -> GridParams:
        """Cover each block's range; with `importance`, the shrunk range of least weighted squared error.

        Where the levels of a symmetric grid reach further on one side, scales of both signs are tried.
        """
        import torch

        blocks = self.blocks(weight)
        low, high = blocks.amin(-1), blocks.amax(-1)
        best = self._range(low, high)
        if importance is None:
            return best
        weights = self.blocks(importance.expand_as(weight))

        def loss(params: GridParams) -> Tensor:
            error = self.decode(self.encode(weight, params), params) - weight
            return (weights * self.blocks(error).square()).sum(-1)

        least = loss(best)
        uneven = self.kind == "symmetric" and 2 * self.center != self.low + self.levels - 1
        shrinks = [1 - step / (2 * SHRINK) for step in range(SHRINK)]
        trials = [(low * share, high * share, 1) for share in shrinks[1:]]
        trials += [(-high * share, -low * share, -1) for share in shrinks if uneven]
        for first, last, sign in trials:
            trial = self._range(first, last)
            trial = trial if sign > 0 else GridParams(-trial.scale)
            error = loss(trial)
            better = error < least
            least = torch.where(better, error, least)
            best = GridParams(
                torch.where(better, trial.scale, best.scale),
                _choose(better, trial.zero_point, best.zero_point),
                _choose(better, trial.minimum, best.minimum),
            )
        return best

    def validate(self, quantized: QuantizedTensor) -> None:
        """Refuse codes or parameters that lie off the grid; see :meth:`Grid.validate`."""
        import torch

        super().validate(quantized)
        if quantized.codebook is not None:
            raise ConfigError("codebook", Described("a table of values"), "equally spaced levels")
        if (quantized.minimum is not None) != (self.kind == "minimum"):
            found = Described("none" if quantized.minimum is None else "one value per block")
            expected = "one value per block" if self.kind == "minimum" else "none"
            raise ConfigError("minimum", found, expected)
        zero = quantized.zero_point
        first, last = 0, self.levels - 1
        if self.kind != "zero_point":
            first = last = self.center if self.kind == "symmetric" else 0
        allowed = str(first) if first == last else f"whole numbers in [{first}, {last}]"
        values = torch.as_tensor(zero, dtype=torch.float32).flatten()
        off = (values < first) | (values > last) | (values != values.round())
        if bool(off.any()):
            raise ConfigError("zero_point", float(values[off][0]), allowed)

    def project(self, params: GridParams) -> GridParams:
        """Nearest storable parameters: scale and minimum rounded, zero point a code."""
        import torch

        zero, minimum = params.zero_point, params.minimum
        return GridParams(
            self.storable(params.scale),
            None if zero is None else zero.round().clamp(0, self.levels - 1).to(torch.int32),
            None if minimum is None else self.storable(minimum),
        )

    def encode(self, weight: Tensor, params: GridParams) -> Tensor:
        """Round to the nearest level, ties to even; a block of scale zero gets the code of zero."""
        import torch

        block = (1, self.columns(weight))
        shape = (int(weight.shape[0]), int(weight.shape[1]))
        scale = expand_blocks(params.scale.float(), shape, block)
        offset: Tensor | float = float(self.center) if self.kind == "symmetric" else 0.0
        if params.zero_point is not None:
            offset = expand_blocks(params.zero_point.float(), shape, block)
        if params.minimum is not None:
            weight = weight - expand_blocks(params.minimum.float(), shape, block)
        steps = torch.where(scale == 0, torch.zeros_like(weight), weight / scale)
        return (steps.round() + offset).clamp(self.low, self.levels - 1).to(torch.uint8)

    def quantized(self, codes: Tensor, params: GridParams) -> QuantizedTensor:
        """Canonical tensor of these codes and parameters."""
        zero: Tensor | float = self.center if self.kind == "symmetric" else 0
        if params.zero_point is not None:
            zero = params.zero_point
        return QuantizedTensor(
            codes,
            params.scale,
            (1, self.columns(codes)),
            zero_point=zero,
            minimum=params.minimum,
        )


def _choose(condition: Tensor, yes: Tensor | None, no: Tensor | None) -> Tensor | None:
    import torch

    return None if yes is None or no is None else torch.where(condition, yes, no)
