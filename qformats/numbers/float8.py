"""Floats of 8 bits as a grid: E4M3 without infinities (``float8_e4m3fn``), times a scale for a block of any height.

A byte is a sign, 4 bits of exponent (bias 7) and 3 of mantissa: 253 different numbers up to 448, -0 beside 0, and two
codes of NaN, which no weight has. Rounding is to nearest, ties to even; what is larger than 448 becomes 448, whatever a
release of torch makes of it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qformats.errors import ConfigError, Described
from qformats.numbers.division import quotient
from qformats.numbers.grid import SHRINK, GridParams
from qformats.numbers.quantized import QuantizedTensor, expand_blocks
from qformats.numbers.table import TableGrid

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["E4M3", "Float8Grid", "is_e4m3"]

_POSITIVE = (
    *(mantissa / 8 * 2.0**-6 for mantissa in range(8)),
    *(
        (1 + m / 8) * 2.0 ** (e - 7)
        for e, m in itertools.product(range(1, 16), range(8))
        if (e, m) != (15, 7)
    ),
)
E4M3 = tuple(sorted({*_POSITIVE, *(-value for value in _POSITIVE)}))
"""The 253 numbers, ascending."""
_ZERO = len(_POSITIVE) - 1
"""Place of 0 among them; the number of byte ``b`` is at ``126 + b``, that of its negative at ``126 - b``."""
LARGEST = E4M3[-1]


def is_e4m3(table: Tensor | None) -> bool:
    """Whether a table of levels is that of E4M3."""
    import torch

    if table is None or len(table) != len(E4M3):
        return False
    return torch.equal(table.float(), torch.tensor(E4M3, dtype=torch.float32, device=table.device))


@dataclass(frozen=True)
class Float8Grid(TableGrid):
    """Levels of E4M3; codes are places in the ascending table.

    Attributes
    ----------
    block_rows : int
        Rows that share a scale; 0 for all of them. Blocks at the edges may be short.
    powers : bool
        Whether scales are powers of two: the next larger ones, so that nothing is cut off.

    Examples
    --------
    >>> import torch
    >>> from qformats.numbers import Float8Grid
    >>> grid = Float8Grid(block_size=2, block_rows=2)
    >>> codes, params = grid.reference(torch.tensor([[1.0, 0.5, 8.0], [0.1, 0.0, 2.0]]))
    >>> params.scale.shape, grid.decode(codes, params)[0].tolist()
    (torch.Size([1, 2]), [1.0, 0.5, 8.0])
    """

    codebook: tuple[float, ...] = E4M3
    block_size: int = 0
    block_rows: int = 1
    powers: bool = False

    def block_of(self, weight: Tensor) -> tuple[int, int]:
        """``(rows, columns)`` of a block of this weight."""
        return self.block_rows or int(weight.shape[0]), self.columns(weight)

    def blocks(self, weight: Tensor) -> Tensor:
        """View `weight` as ``(rows of blocks, columns of blocks, elements)``; short blocks are padded with zeros."""
        import torch

        if weight.ndim != 2 or not weight.numel():
            return super().blocks(weight)
        height, width = self.block_of(weight)
        rows, columns = weight.shape
        padded = torch.nn.functional.pad(weight, (0, -columns % width, 0, -rows % height))
        parts = padded.view(padded.shape[0] // height, height, padded.shape[1] // width, width)
        return parts.transpose(1, 2).flatten(2)

    def fit(self, weight: Tensor, importance: Tensor | None = None) -> GridParams:
        """Map the largest magnitude of each block onto 448; with `importance`, the best of some that are smaller.

        A block of zeros gets the scale 1, so that every scale divides.
        """
        import torch

        largest = self.blocks(weight).abs().amax(-1)
        best = self._scale(largest)
        if importance is None:
            return GridParams(best)
        weights = self.blocks(importance.expand_as(weight).contiguous())
        least = torch.full_like(best, float("inf"))
        for step in range(SHRINK):
            trial = GridParams(self._scale(largest * (1 - step / (2 * SHRINK))))
            error = self.decode(self.encode(weight, trial), trial) - weight
            loss = (weights * self.blocks(error).square()).sum(-1)
            best = torch.where(loss < least, trial.scale, best)
            least = torch.minimum(loss, least)
        return GridParams(best)

    def storable(self, values: Tensor) -> Tensor:
        """Nearest numbers of the dtype; of powers of two, the next larger one, from 2**-127 to 2**127."""
        if not self.powers:
            return super().storable(values)
        import torch

        values = values.to(torch.float32)
        mantissa, exponent = torch.frexp(values.double().abs())
        whole = (exponent - (mantissa == 0.5).int()).clamp(-127, 127)
        power = torch.exp2(whole.double()).float().copysign(values)
        return torch.where(values.isfinite() & (values != 0), power, values)

    def _scale(self, largest: Tensor) -> Tensor:
        scale = self.storable(quotient(largest, LARGEST))
        return scale.masked_fill(scale == 0, 1.0)

    def encode(self, weight: Tensor, params: GridParams) -> Tensor:
        """Codes of the nearest values, ties to even mantissas; larger values become the largest."""
        import torch

        shape = (int(weight.shape[0]), int(weight.shape[1]))
        scale = expand_blocks(params.scale.float(), shape, self.block_of(weight))
        steps = torch.where(scale == 0, torch.zeros_like(weight), weight / scale)
        return self.places(steps.clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn))

    @staticmethod
    def places(stored: Tensor) -> Tensor:
        """Codes of stored numbers: uint8, of float8_e4m3fn of any shape.

        Raises
        ------
        ConfigError
            If some are NaN.
        """
        import torch

        byte = stored.contiguous().view(torch.uint8)
        magnitude = byte & 127
        if bool((magnitude == 127).any()):
            found = Described(f"{int((magnitude == 127).sum())} codes of NaN")
            raise ConfigError("FP8 weights", found, "finite numbers")
        # Bytes from 128 on are negative: 126 + b and 126 - (b - 128), modulo 256.
        return torch.where(byte < 128, magnitude + _ZERO, _ZERO - magnitude)

    @staticmethod
    def stored(codes: Tensor) -> Tensor:
        """Numbers of codes, the inverse of :meth:`places`; 0 is not negative: float8_e4m3fn.

        Raises
        ------
        ConfigError
            If there is no such code.
        """
        import torch

        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= len(E4M3)):
            found = f"[{int(codes.min())}, {int(codes.max())}]"
            raise ConfigError("codes", found, f"[0, {len(E4M3) - 1}]")
        codes = codes.to(torch.uint8)
        byte = torch.where(codes >= _ZERO, codes - _ZERO, (_ZERO - codes) | 128)
        return byte.view(torch.float8_e4m3fn)

    def quantized(self, codes: Tensor, params: GridParams) -> QuantizedTensor:
        """Canonical tensor of these codes and parameters."""
        return QuantizedTensor(codes, params.scale, self.block_of(codes), codebook=self.table(codes))
