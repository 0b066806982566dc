"""Grids: which numbers a block of a format can represent, and how parameters and codes are chosen.

:class:`AffineGrid` and :class:`TableGrid` give every method from data alone. A format whose upstream writer
has a rule of its own (a signed maximum, a double rounding) overrides :meth:`Grid.reference` and inherits the
rest.
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from array import array
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qformats.dtypes import torch_dtype
from qformats.errors import ConfigError, ShapeError
from qformats.tensors import QuantizedTensor, expand_blocks

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AffineGrid", "Grid", "GridParams", "TableGrid"]

_SHRINK = 40
"""Candidate ranges that an importance-weighted fit tries, from the whole range down to half of it."""


@dataclass(frozen=True, eq=False)
class GridParams:
    """Parameters of every block of a weight.

    Attributes
    ----------
    scale : Tensor
        Weight units a step, one value a block, ``(rows of blocks, columns of blocks)``.
    zero_point : Tensor, optional
        Integer code that stands for zero, shape of `scale`.
    minimum : Tensor, optional
        Weight units, shape of `scale`.
    """

    scale: Tensor
    zero_point: Tensor | None = None
    minimum: Tensor | None = None


class Grid(ABC):
    """What a block of a format can represent.

    Weights are float32 ``(N, K)``, those given to :meth:`reference` and :meth:`quantize` of any float dtype; codes are
    uint8 ``(N, K)`` in ``[0, levels)``. No method modifies its arguments.
    """

    levels: int
    block_size: int
    """Columns of a block; 0 for the whole row."""
    flat: bool = False
    """Whether blocks run over the flattened tensor, where a row is no whole number of them; the last may be short."""
    scale_dtype: str
    reordered: bool = False
    """Whether columns may lie in other blocks than their neighbours (``g_idx``)."""

    def _check(self) -> None:
        if self.block_size < 0:
            raise ConfigError("block_size", self.block_size, "columns of a block, or 0 for the whole row")
        if self.scale_dtype not in ("f32", "f16", "bf16"):
            raise ConfigError("scale_dtype", self.scale_dtype, "f32, f16 or bf16")

    def columns(self, weight: Tensor) -> int:
        """Columns of a block of this weight."""
        return self.block_size or int(weight.shape[1])

    def block_of(self, weight: Tensor) -> tuple[int, int]:
        """``(rows, columns)`` of a block of this weight, as :class:`~qformats.QuantizedTensor` has it."""
        columns = self.columns(weight)
        return (0, columns) if self.flat and weight.shape[1] % columns else (1, columns)

    def blocks(self, weight: Tensor) -> Tensor:
        """View `weight` as ``(N, blocks a row, columns of a block)``.

        Raises
        ------
        ShapeError
            If a row is no whole number of blocks.
        """
        shape = tuple(weight.shape)
        if len(shape) != 2 or not shape[1] or shape[1] % self.columns(weight):
            multiple = f", a multiple of {self.block_size}" if self.block_size else ""
            raise ShapeError("weight", shape, f"two dimensions with columns{multiple}")
        columns = self.columns(weight)
        return weight.view(shape[0], shape[1] // columns, columns)

    def storable(self, values: Tensor) -> Tensor:
        """Nearest numbers that the stored scale can hold, as float32."""
        import torch

        return values.to(torch_dtype(self.scale_dtype)).to(torch.float32)

    @abstractmethod
    def fit(self, weight: Tensor, importance: Tensor | None = None) -> GridParams:
        """Storable parameters for a weight.

        Parameters
        ----------
        weight : Tensor
            float32, ``(N, K)``.
        importance : Tensor, optional
            float32, ``(K,)`` or ``(N, K)``, non-negative: the weight of each element's squared error.
        """

    @abstractmethod
    def encode(self, weight: Tensor, params: GridParams) -> Tensor:
        """Codes of the nearest representable values, uint8 ``(N, K)``."""

    @abstractmethod
    def quantized(self, codes: Tensor, params: GridParams) -> QuantizedTensor:
        """Canonical tensor of these codes and parameters."""

    def decode(self, codes: Tensor, params: GridParams) -> Tensor:
        """Values of codes, float32 ``(N, K)``."""
        return self.quantized(codes, params).dequantize()

    def project(self, params: GridParams) -> GridParams:
        """Nearest storable parameters to ones that a quantizer found by itself."""
        return replace(params, scale=self.storable(params.scale))

    def reference(self, weight: Tensor) -> tuple[Tensor, GridParams]:
        """Codes and parameters that the format's own upstream writer would choose.

        Parameters
        ----------
        weight : Tensor
            float32, float16 or bfloat16, ``(N, K)``: some writers round in the dtype of the source.
        """
        weight = weight.float()
        params = self.fit(weight)
        return self.encode(weight, params), params

    def quantize(self, weight: Tensor, importance: Tensor | None = None) -> QuantizedTensor:
        """Round a weight by the reference rule; with `importance`, by the weighted fit.

        Parameters
        ----------
        weight : Tensor
            float32, float16 or bfloat16, ``(N, K)``.
        importance : Tensor, optional
            See :meth:`fit`.

        Raises
        ------
        NonFiniteError
            If a weight is so large that a parameter of its block is beyond the stored dtype.
        """
        if importance is None:
            codes, params = self.reference(weight)
        else:
            weight = weight.float()
            params = self.fit(weight, importance)
            codes = self.encode(weight, params)
        fits = params.scale.isfinite()
        if params.minimum is not None:
            fits = fits & params.minimum.isfinite()
        if not bool(fits.all()):
            from qformats.kernels.dense import too_large

            found = f"{int((~fits).sum())} of {fits.numel()} blocks need a scale beyond {self.scale_dtype}"
            raise too_large(found, weight)
        return self.quantized(codes, params)

    def hold(self, quantized: QuantizedTensor) -> QuantizedTensor:
        """Give a tensor of the same values on this grid; see :func:`qformats.exact.hold`.

        Raises
        ------
        NotExactError
            If there is none, saying why.
        """
        from qformats.exact import hold

        return hold(quantized, self)

    def validate(self, quantized: QuantizedTensor) -> None:
        """Refuse codes or parameters that lie off the grid.

        Raises
        ------
        ConfigError
            Naming what is off the grid.
        ShapeError
            If the last block of a row is short.
        """
        codes = quantized.codes
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= self.levels):
            found = f"[{int(codes.min())}, {int(codes.max())}]"
            raise ConfigError("codes", found, f"[0, {self.levels - 1}]")
        expected = self.block_of(codes)
        if quantized.block_size != expected or quantized.g_idx is not None:
            found = f"{quantized.block_size}" + (
                " with reordered columns" if quantized.g_idx is not None else ""
            )
            raise ConfigError("block_size", found, f"{expected}, columns in order")
        if expected[0]:
            self.blocks(codes)
        for name in ("scale", "minimum"):
            value = getattr(quantized, name)
            if value is None:
                continue
            expected_values = f"finite {self.scale_dtype} values"
            if not bool(value.isfinite().all()):
                raise ConfigError(name, "infinity or NaN", expected_values)
            changed = self.storable(value.float()) != value
            if bool(changed.any()):
                example = float(value[changed][0])
                found = f"{int(changed.sum())} values that rounding would change, such as {example!r}"
                raise ConfigError(name, found, expected_values)


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
        ``"symmetric"``: the zero point is fixed. ``"zero_point"``: an integer zero point a block.
        ``"minimum"``: a float minimum a block.
    scale_dtype : str
        Dtype of the stored scale (and minimum).
    zero : int or None
        Zero point of a symmetric grid; ``2**(bits - 1)`` if not given.
    low : int
        Smallest code in use; a symmetric grid without its lowest level starts at 1.
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
            allowed = f"between `low` ({self.low}) and the last code ({self.levels - 1})"
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
            reach = torch.maximum(-low / (self.center - self.low), high / (top - self.center))
            return GridParams(self.storable(reach))
        if self.kind == "minimum":
            return GridParams(self.storable((high - low) / top), minimum=self.storable(low))
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = self.storable((high - low) / top)
        zero = torch.where(scale > 0, (-low / scale).round(), torch.zeros_like(scale))
        return GridParams(scale, zero_point=zero.clamp(0, top).to(torch.int32))

    def fit(self, weight: Tensor, importance: Tensor | None = None) -> GridParams:
        """Cover each block's range; with `importance`, the shrunk range of least weighted squared error."""
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
        for step in range(1, _SHRINK):
            shrink = 1 - step / (2 * _SHRINK)
            trial = self._range(low * shrink, high * shrink)
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
            raise ConfigError("codebook", "a table of values", "equally spaced levels")
        if (quantized.minimum is not None) != (self.kind == "minimum"):
            found = "none" if quantized.minimum is None else "a value a block"
            raise ConfigError("minimum", found, "a value a block" if self.kind == "minimum" else "none")
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


@dataclass(frozen=True)
class TableGrid(Grid):
    """Levels from a table: ``scale * codebook[code]``.

    Attributes
    ----------
    codebook : tuple of float
        Ascending values, 2 to 256 of them, distinct as float32; the scale maps the largest magnitude of a
        block onto the largest one here.
    block_size : int
        Columns that share a scale; 0 for the whole row.
    scale_dtype : str
        Dtype of the stored scale.
    """

    codebook: tuple[float, ...]
    block_size: int
    scale_dtype: str = "f32"

    def __post_init__(self) -> None:
        self._check()
        if not 2 <= len(self.codebook) <= 256:
            raise ConfigError("codebook", f"{len(self.codebook)} values", "2 to 256")
        values = array("f", self.codebook)
        if not all(map(math.isfinite, values)) or not all(map(operator.lt, values, values[1:])):
            raise ConfigError("codebook", self.codebook, "finite ascending float32 values without repetition")

    @property
    def levels(self) -> int:  # type: ignore[override]
        """Number of codes."""
        return len(self.codebook)

    def table(self, like: Tensor) -> Tensor:
        """Codebook as float32 on the device of `like`."""
        import torch

        return torch.tensor(self.codebook, dtype=torch.float32, device=like.device)

    def fit(self, weight: Tensor, importance: Tensor | None = None) -> GridParams:
        """Map each block's largest magnitude onto the table's; with `importance`, the best shrunk one."""
        import torch

        reach = max(abs(self.codebook[0]), abs(self.codebook[-1]))
        largest = self.blocks(weight).abs().amax(-1)
        best = self.storable(largest / reach)
        if importance is None:
            return GridParams(best)
        weights = self.blocks(importance.expand_as(weight))
        least = torch.full_like(best, float("inf"))
        for step in range(_SHRINK):
            trial = GridParams(self.storable(largest / reach * (1 - step / (2 * _SHRINK))))
            error = self.decode(self.encode(weight, trial), trial) - weight
            loss = (weights * self.blocks(error).square()).sum(-1)
            best = torch.where(loss < least, trial.scale, best)
            least = torch.minimum(loss, least)
        return GridParams(best)

    def encode(self, weight: Tensor, params: GridParams) -> Tensor:
        """Index of the nearest table value, the lower one on a tie."""
        import torch

        table = self.table(weight)
        shape = (int(weight.shape[0]), int(weight.shape[1]))
        scale = expand_blocks(params.scale.float(), shape, (1, self.columns(weight)))
        steps = torch.where(scale == 0, torch.zeros_like(weight), weight / scale)
        middles = (table[1:] + table[:-1]) / 2
        return torch.bucketize(steps.contiguous(), middles).to(torch.uint8)

    def quantized(self, codes: Tensor, params: GridParams) -> QuantizedTensor:
        """Canonical tensor of these codes and parameters."""
        block = (1, self.columns(codes))
        return QuantizedTensor(codes, params.scale, block, codebook=self.table(codes))

    def validate(self, quantized: QuantizedTensor) -> None:
        """Refuse codes or parameters that lie off the grid; see :meth:`Grid.validate`."""
        super().validate(quantized)
        if quantized.minimum is not None:
            raise ConfigError("minimum", "a value a block", "none")
        found = quantized.codebook
        if found is None:
            raise ConfigError("codebook", "none: levels are equally spaced", f"a table of {self.levels}")
        table = self.table(found)
        if found.shape != table.shape or bool((found != table).any()):
            raise ConfigError("codebook", found.tolist(), f"{table.tolist()}")
