"""Grids: which numbers a block of a format can represent, and how parameters and codes are chosen.

:class:`~qformats.numbers.AffineGrid` and :class:`~qformats.numbers.TableGrid` give every method from data alone. A
format whose upstream writer has its own rule (a signed maximum, a double rounding) overrides
:meth:`Grid.reference` and inherits the rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from qformats.errors import ConfigError, Described, ShapeError
from qformats.numbers.dtypes import torch_dtype
from qformats.numbers.finite import too_large
from qformats.numbers.nested import NestedScales
from qformats.numbers.quantized import QuantizedTensor
from qformats.work.guard import Guarded
from qformats.work.shown import Shown, dims

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SHRINK", "Grid", "GridParams"]

SHRINK = 40
"""Candidate ranges that an importance-weighted fit tries, from the whole range down to half of it."""


@dataclass(frozen=True, eq=False, repr=False)
class GridParams(Shown):
    """Parameters of every block of a weight.

    Attributes
    ----------
    scale : Tensor
        Weight units per step, one value per block, ``(rows of blocks, columns of blocks)``.
    zero_point : Tensor, optional
        Integer code that stands for zero, shape of `scale`.
    minimum : Tensor, optional
        Weight units, shape of `scale`.

    Examples
    --------
    >>> import torch
    >>> from qformats import AffineGrid, GridParams
    >>> params = GridParams(torch.tensor([[0.1], [0.25]]))
    >>> AffineGrid(4, block_size=8).project(params).scale.tolist()
    [[0.0999755859375], [0.25]]
    """

    scale: Tensor
    zero_point: Tensor | None = None
    minimum: Tensor | None = None

    def _shown_facts(self) -> dict[str, str]:
        parts = {"scale": self.scale, "zero point": self.zero_point, "minimum": self.minimum}
        return {
            name: f"{str(part.dtype).removeprefix('torch.')} {name} {dims(part.shape)}"
            for name, part in parts.items()
            if part is not None
        }


class Grid(Guarded, ABC):
    """What a block of a format can represent.

    Weights are float32 ``(N, K)``, those given to :meth:`reference` and :meth:`quantize` of any float dtype; codes are
    uint8 ``(N, K)`` in ``[0, levels)``. No method modifies its arguments.

    Examples
    --------
    A format whose upstream writer rounds half away from zero:

    >>> import torch
    >>> from qformats import AffineGrid
    >>> class HalfAway(AffineGrid):
    ...     def encode(self, weight, params):
    ...         steps = weight / params.scale
    ...         return (steps.sign() * (steps.abs() + 0.5).floor() + self.center).to(torch.uint8)
    >>> grid, weight = HalfAway(8, block_size=0), torch.tensor([[127.0, 0.5, -0.5]])
    >>> grid.reference(weight)[0].tolist(), AffineGrid(8, block_size=0).reference(weight)[0].tolist()
    ([[255, 129, 127]], [[255, 128, 128]])
    """

    guarded = (
        "fit",
        "encode",
        "quantized",
        "decode",
        "project",
        "nested",
        "joined",
        "reference",
        "weighted",
        "quantize",
        "validate",
        "storable",
    )
    independent: ClassVar[bool] = True
    """Whether the parameters of blocks are independent; they are not if scales are quantized together."""
    searches: ClassVar[bool] = False
    """Whether the reference rule searches for the scales of least error, and does not just cover each block's range."""
    fixed: ClassVar[bool] = False
    """Whether :meth:`weighted` chooses as :meth:`reference` does: a weight leaves no choice of a scale."""

    levels: int
    block_size: int
    """Columns of a block; 0 for the whole row."""
    flat: bool = False
    """Whether blocks run over the flattened tensor if a row is not a whole number of them; the last may be short."""
    block_rows: int = 1
    """Rows that share a scale; 0 for all of them."""
    scale_dtype: str
    reordered: bool = False
    """Whether columns may lie in different blocks from their neighbours (``g_idx``)."""

    def _check(self) -> None:
        if self.block_size < 0:
            raise ConfigError("block_size", self.block_size, "the columns of a block, or 0 for the whole row")
        if self.scale_dtype not in ("f32", "f16", "bf16"):
            raise ConfigError("scale_dtype", self.scale_dtype, "f32, f16 or bf16")

    def columns(self, weight: Tensor) -> int:
        """Columns of a block of this weight."""
        return self.block_size or int(weight.shape[1])

    def block_of(self, weight: Tensor) -> tuple[int, int]:
        """``(rows, columns)`` of a block of this weight, as in :class:`~qformats.QuantizedTensor`."""
        columns = self.columns(weight)
        return (0, columns) if self.flat and weight.shape[1] % columns else (1, columns)

    def blocks(self, weight: Tensor) -> Tensor:
        """View `weight` as ``(N, blocks per row, columns of a block)``.

        Raises
        ------
        ShapeError
            If a row is not a whole number of blocks.
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

    def nearest(self, quantized: QuantizedTensor) -> QuantizedTensor:
        """The same codes with the nearest scales, and minimums, that can be stored."""
        minimum = None if quantized.minimum is None else self.storable(quantized.minimum.float())
        return replace(quantized, scale=self.storable(quantized.scale.float()), minimum=minimum)

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
        """Storable parameters nearest to ones that a quantizer found."""
        return replace(params, scale=self.storable(params.scale))

    def nested(self, params: GridParams) -> tuple[NestedScales, ...] | None:
        """The two numbers of which each scale (and, second, each minimum) is the product, where a format stores those.

        A quantizer that fits parameters chooses among exactly these; :meth:`joined` makes parameters of them again.

        Parameters
        ----------
        params : GridParams
            Of this grid, storable.

        Returns
        -------
        tuple of NestedScales, or None
            ``None`` where scales are stored as they are, the default.
        """
        return None

    def joined(self, nested: Sequence[NestedScales]) -> GridParams:
        """Storable parameters of the numbers that :meth:`nested` gives; overridden along with it."""
        raise NotImplementedError

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

    def weighted(self, weight: Tensor, importance: Tensor) -> tuple[Tensor, GridParams]:
        """Codes and parameters for weights whose errors count differently; by default the weighted fit, and rounding.

        Parameters
        ----------
        weight, importance
            As for :meth:`quantize`.
        """
        weight = weight.float()
        params = self.fit(weight, importance)
        return self.encode(weight, params), params

    def quantize(self, weight: Tensor, importance: Tensor | None = None) -> QuantizedTensor:
        """Round a weight by the reference rule; with `importance`, as :meth:`weighted` does.

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
            codes, params = self.weighted(weight, importance)
        fits = params.scale.isfinite()
        if params.minimum is not None:
            fits = fits & params.minimum.isfinite()
        if not bool(fits.all()):
            found = f"{int((~fits).sum())} of {fits.numel()} blocks need a scale beyond {self.scale_dtype}"
            raise too_large(found, weight)
        return self.quantized(codes, params)

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
        if codes.numel():
            low, high = map(int, codes.aminmax())
            if low < 0 or high >= self.levels:
                raise ConfigError("codes", f"[{low}, {high}]", f"[0, {self.levels - 1}]")
        expected = self.block_of(codes)
        if quantized.block_size != expected or quantized.g_idx is not None:
            found = f"{quantized.block_size}" + (
                " with reordered columns" if quantized.g_idx is not None else ""
            )
            raise ConfigError("block_size", found, f"{expected}, columns in order")
        if expected[0]:
            self.blocks(codes)
        stored = torch_dtype(self.scale_dtype)
        for name in ("scale", "minimum"):
            value = getattr(quantized, name)
            if value is None or not value.numel():
                continue
            expected_values = f"finite {self.scale_dtype} values"
            # Of values with a NaN both are NaN.
            if not all(bool(end.isfinite()) for end in value.aminmax()):
                raise ConfigError(name, Described("infinity or NaN"), expected_values)
            if value.dtype == stored and type(self).storable is Grid.storable:
                continue
            changed = self.storable(value.float()) != value
            if bool(changed.any()):
                example = float(value[changed][0])
                found = Described(
                    f"{int(changed.sum())} values that rounding would change, such as {example!r}"
                )
                raise ConfigError(name, found, expected_values)
