"""Floats of 4 bits as a grid (E2M1), with a scale in E4M3 for 16 of them and one more number for the whole tensor.

A scale is ``fl(inner * outer)``, or ``fl(inner / outer)`` where a format stores the reciprocal: `inner` is one of the
127 numbers of E4M3 that are not negative, `outer` a float32. Levels here are twice those of E2M1 and scales half of
that, so that the same numbers have the same codes in formats of llama.cpp, which count in halves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from qformats.errors import ConfigError, Described, NotExactError
from qformats.numbers.float8 import E4M3
from qformats.numbers.grid import SHRINK, GridParams
from qformats.numbers.nested import NestedScales
from qformats.numbers.quantized import QuantizedTensor, expand_blocks
from qformats.numbers.table import TableGrid

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["E2M1", "Float4Grid", "Float4Tensor", "find_outer", "inner_of", "is_e2m1"]

_MAGNITUDES = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
E2M1 = tuple(sorted({*_MAGNITUDES, *(-level for level in _MAGNITUDES)}))
"""The 15 levels, ascending."""
_MIDDLES = ((0.5, False), (1.5, True), (2.5, False), (3.5, True), (5.0, False), (7.0, True), (10.0, False))
"""Between neighbouring magnitudes, and whether the middle itself goes up: to the even mantissa."""
_LARGEST = 6.0
_INNER = E4M3[-1]
_NEAR = 3
"""Neighbours tried on each side of an outer number; rounding a product or quotient leaves at most two of them."""
_BLOCK = 16
_FEW = 1 << 12
"""Different scales up to which all ways to store them are compared."""


def is_e2m1(table: Tensor | None) -> bool:
    """Whether a table of levels is `E2M1`."""
    import torch

    if table is None or len(table) != len(E2M1):
        return False
    return torch.equal(table.float(), torch.tensor(E2M1, dtype=torch.float32, device=table.device))


@dataclass(frozen=True, eq=False, repr=False)
class Float4Tensor(QuantizedTensor):
    """A canonical tensor that says which of its scales' two numbers belongs to the whole tensor.

    Attributes
    ----------
    outer : float
        A float32 number; see the module.
    divides : bool
        Whether it divides.

    Examples
    --------
    >>> import torch
    >>> from qformats.numbers import Float4Grid
    >>> grid = Float4Grid()
    >>> type(grid.quantize(torch.ones(1, 16))).__name__, round(2688 * grid.quantize(torch.ones(1, 16)).outer, 6)
    ('Float4Tensor', 1.0)
    """

    outer: float = 1.0
    divides: bool = False

    @property
    def nested_scales(self) -> tuple[NestedScales, ...]:
        """Numbers of E4M3, and one for all of them, where these are the scales."""
        import torch

        if self.scale.ndim != 2 or not self.scale.numel():
            return ()
        inner = inner_of(self.scale, self.outer, self.divides).float()
        # The scales are half of what the two numbers stand for.
        half = self.outer * 2 if self.divides else self.outer / 2
        steps = torch.tensor([level for level in E4M3 if level >= 0], device=inner.device)
        return (NestedScales(torch.full_like(inner[:, :1], half), inner, steps, "f32", self.divides),)


@dataclass(frozen=True, eq=False, repr=False)
class Float4Params(GridParams):
    """Parameters, with the number of the whole tensor."""

    outer: float = 1.0


@dataclass(frozen=True)
class Float4Grid(TableGrid):
    """E2M1 times a scale of two numbers.

    Attributes
    ----------
    divides : bool
        Whether `outer` divides, as in compressed-tensors; else it multiplies, as in ModelOpt.
    largest : float
        Magnitude that the number of a whole tensor is chosen for at least: of tensors that are to share one.
    first : float
        Number of a whole tensor that is preferred wherever it gives the scales; 0 prefers none.

    Examples
    --------
    >>> import torch
    >>> from qformats.numbers import Float4Grid
    >>> grid = Float4Grid()
    >>> codes, params = grid.reference(torch.linspace(-6, 6, 16).view(1, 16))
    >>> grid.decode(codes, params)[0, -3:].tolist()
    [4.0, 6.0, 6.0]
    """

    codebook: tuple[float, ...] = E2M1
    block_size: int = _BLOCK
    divides: bool = False
    largest: float = 0.0
    first: float = 0.0
    independent: ClassVar[bool] = False

    def _outer(self, largest: Tensor) -> float:
        """The number of a whole tensor that maps its largest magnitude onto the largest of both kinds of floats."""
        import torch

        # In float32, as the programs compute it: compressed-tensors divides a Python number, by the reciprocal.
        top = torch.tensor(_INNER * _LARGEST, dtype=torch.float32, device=largest.device)
        found = largest.reciprocal() * top if self.divides else largest / top
        # Not of zeros alone, nor of numbers so small that a product would have no normal float32.
        return float(found) if 2.0**-100 <= float(found) <= 2.0**100 else 1.0

    def _params(self, wanted: Tensor, outer: float, least: float) -> Float4Params:
        """Parameters with the nearest inner numbers to scales that would fit (natural ones, not halved)."""
        import torch

        number = torch.tensor(outer, dtype=torch.float32, device=wanted.device)
        inner = wanted * number if self.divides else wanted / number
        rounded = inner.clamp(least, _INNER).to(torch.float8_e4m3fn).float()
        return Float4Params(products(rounded, outer, self.divides), outer=outer)

    def reference(self, weight: Tensor) -> tuple[Tensor, GridParams]:
        """Codes and parameters by the rule of the programs: the largest magnitude of a block becomes 6.

        Source: Model-Optimizer:modelopt/torch/quantization/qtensor/nvfp4_tensor.py;
        compressed-tensors:src/compressed_tensors/quantization/utils/helpers.py where `divides`.
        """
        import torch

        weight = weight.float()
        largest = self.blocks(weight).abs().amax(-1)
        whole = largest.max() if largest.numel() else largest.new_zeros(())
        whole = whole.clamp(min=self.largest)
        outer = self._outer(whole)
        # Tensors on the same device, since CUDA multiplies by the reciprocal of a Python number.
        six = torch.tensor(_LARGEST, dtype=torch.float32, device=weight.device)
        number = torch.tensor(outer, dtype=torch.float32, device=weight.device)
        if self.divides:
            inner = (number * (largest / six)).clamp(max=_INNER).to(torch.float8_e4m3fn).float()
            # What torch.finfo calls the resolution of E4M3: of zeros, and of blocks too small for a scale.
            inner = inner.masked_fill(inner == 0, 0.125)
        else:
            inner = (largest / (six * number)).clamp(2.0**-9, _INNER).to(torch.float8_e4m3fn).float()
            inner = inner.masked_fill(largest == 0, 1.0)
        params = Float4Params(products(inner, outer, self.divides), outer=outer)
        return self.encode(weight, params), params

    def fit(self, weight: Tensor, importance: Tensor | None = None) -> GridParams:
        """Scales by the programs' rule; with `importance`, the best of some that cover less of a block's range."""
        import torch

        _, best = self.reference(weight)
        if importance is None:
            return best
        assert isinstance(best, Float4Params)
        wanted = self.blocks(weight.float()).abs().amax(-1) / _LARGEST
        weights = self.blocks(importance.expand_as(weight).contiguous())
        chosen, least = best.scale, torch.full_like(best.scale, float("inf"))
        for step in range(SHRINK):
            trial = self._params(wanted * (1 - step / (2 * SHRINK)), best.outer, 2.0**-9)
            error = self.decode(self.encode(weight, trial), trial) - weight
            loss = (weights * self.blocks(error).square()).sum(-1)
            chosen = torch.where(loss < least, trial.scale, chosen)
            least = torch.minimum(loss, least)
        return replace(best, scale=chosen)

    def encode(self, weight: Tensor, params: GridParams) -> Tensor:
        """Codes of the nearest levels, ties to even mantissas."""
        import torch

        shape = (int(weight.shape[0]), int(weight.shape[1]))
        scale = expand_blocks(params.scale.float(), shape, (1, self.columns(weight)))
        # Halving is exact, and keeps scales normal whose halves are not.
        unit = 2 * torch.where(scale == 0, torch.zeros_like(weight), weight.float() / (2 * scale))
        size, place = unit.abs(), torch.zeros_like(unit, dtype=torch.uint8)
        for middle, up in _MIDDLES:
            place += (size >= middle) if up else (size > middle)
        return torch.where(unit < 0, 7 - place, 7 + place)

    @staticmethod
    def places(stored: Tensor) -> Tensor:
        """Codes of stored numbers: uint8, of a sign and three bits in uint8; the code of -0 is that of 0."""
        import torch

        return torch.where(stored < 8, stored + 7, 15 - stored)

    @staticmethod
    def stored(codes: Tensor) -> Tensor:
        """Numbers of codes, the inverse of :meth:`places`: uint8."""
        import torch

        codes = codes.to(torch.uint8)
        return torch.where(codes < 7, 15 - codes, codes - 7)

    def storable(self, values: Tensor) -> Tensor:
        """Nearest scales that a whole tensor can have together, with their signs; what is not finite stays so."""
        import torch

        values = values.to(torch.float32)
        nearest = self.project(GridParams(values)).scale.copysign(values)
        return torch.where(values.isfinite(), nearest, values)

    def nearest(self, quantized: QuantizedTensor) -> QuantizedTensor:
        """The same codes with scales that can be stored.

        A number of the whole tensor that is known is kept, or its reciprocal is taken where that is stored: tensors
        that shared one still do, and inner numbers stay as they are.
        """
        if not isinstance(quantized, Float4Tensor) or not quantized.outer:
            return super().nearest(quantized)
        import torch

        natural = 2 * quantized.scale.float().abs()
        reciprocal = float(torch.tensor(1 / quantized.outer, dtype=torch.float32))
        tried = [self._params(natural, number, 0.0) for number in (quantized.outer, reciprocal)]
        params = min(tried, key=lambda each: float((2 * each.scale - natural).abs().sum()))
        scale = params.scale.copysign(quantized.scale)
        return replace(quantized, scale=scale, outer=params.outer)

    def project(self, params: GridParams) -> GridParams:
        """Nearest storable scales: of all numbers for the whole tensor, the one that changes them least.

        Negative scales become positive ones, which are all that formats of this grid store.
        """
        import torch

        scale = params.scale.to(torch.float32)
        natural = 2 * scale.abs().nan_to_num(0.0, 0.0, 0.0)
        known = params.outer if isinstance(params, Float4Params) else None
        top = natural.max() * _LARGEST if natural.numel() else natural.new_zeros(())
        if 0 < float(top) <= self.largest:
            return self._params(natural, self._outer(torch.full_like(top, self.largest)), 0.0)
        outer = find_outer(scale, divides=self.divides, known=known)
        if outer is None:
            outer = _nearest(natural, self._outer(top), self.divides)
        return self._params(natural, outer, 0.0)

    def quantized(self, codes: Tensor, params: GridParams) -> QuantizedTensor:
        """Canonical tensor of these codes and parameters."""
        params = params if isinstance(params, Float4Params) else self.project(params)
        assert isinstance(params, Float4Params)
        block = (1, self.columns(codes))
        return Float4Tensor(
            codes,
            params.scale,
            block,
            codebook=self.table(codes),
            outer=params.outer,
            divides=self.divides,
        )

    def validate(self, quantized: QuantizedTensor) -> None:
        """Refuse codes or parameters that lie off the grid; see :meth:`Grid.validate`."""
        super().validate(quantized)
        known = quantized.outer if isinstance(quantized, Float4Tensor) else None
        if find_outer(quantized.scale, divides=self.divides, known=known) is None:
            raise ConfigError(
                "scale", Described("numbers of no such form"), "numbers of E4M3 times one number"
            )

    def settled(self, quantized: QuantizedTensor) -> Float4Tensor:
        """The same values with scales that a format of this grid stores.

        Parameters
        ----------
        quantized : QuantizedTensor
            With the levels of this grid, in blocks of 16 columns.

        Raises
        ------
        NotExactError
            If no number of the whole tensor gives these scales.
        """
        import torch

        scale = quantized.scale.to(torch.float32)
        codes = quantized.codes.to(torch.uint8)
        negative = scale < 0
        if bool(negative.any()):
            turned = expand_blocks(negative, quantized.shape, quantized.block_size)
            codes, scale = torch.where(turned, len(E2M1) - 1 - codes, codes), scale.abs()
        known = self.first or (quantized.outer if isinstance(quantized, Float4Tensor) else None)
        outer = find_outer(scale, divides=self.divides, known=known)
        if outer is None:
            raise NotExactError(
                f"its scales are not numbers of E4M3 {'over' if self.divides else 'times'} one number"
            )
        return Float4Tensor(
            codes,
            scale,
            quantized.block_size,
            codebook=self.table(codes),
            outer=outer,
            divides=self.divides,
        )


def products(inner: Tensor, outer: float, divides: bool) -> Tensor:
    """Scales of inner numbers, half of what they stand for: float32.

    Parameters
    ----------
    inner : Tensor
        float32, numbers of E4M3.
    outer : float
        The number of the whole tensor.
    divides : bool
        Whether it divides.
    """
    import torch

    number = torch.tensor(outer, dtype=torch.float32, device=inner.device)
    return (inner / number if divides else inner * number) / 2


def inner_of(scale: Tensor, outer: float, divides: bool) -> Tensor:
    """Inner numbers of scales, the inverse of :func:`products`: float8_e4m3fn, the nearest where there is none."""
    import torch

    natural = 2 * scale.double()
    return (
        (natural * outer if divides else natural / outer)
        .clamp(-_INNER, _INNER)
        .float()
        .to(torch.float8_e4m3fn)
    )


def find_outer(scale: Tensor, *, divides: bool, known: float | None = None) -> float | None:
    """A number of the whole tensor with which E4M3 gives exactly these scales; None if there is none.

    Complete where the largest scale is a normal number: it is one of 126 numbers of E4M3 times (or over) the outer
    number, which leaves a few candidates for each.

    Parameters
    ----------
    scale : Tensor
        float32, any shape, as in canonical tensors; signs make no difference.
    divides : bool
        Whether the number divides.
    known : float, optional
        One to try first, and its reciprocal.
    """
    import torch

    values = 2 * scale.to(torch.float32).reshape(-1).abs()
    if known is not None:
        for number in (known, float(torch.tensor(1 / known, dtype=torch.float32)) if known else 0.0):
            if number > 0 and _gives(values, torch.tensor([number], device=values.device), divides)[0]:
                return number
    values = torch.unique(values)
    values = values[values != 0]
    if not len(values):
        return 1.0 if known is None else known
    levels = torch.tensor([n for n in reversed(E4M3) if n > 0], dtype=torch.float64, device=values.device)
    if len(values) > len(levels) or not bool(values.isfinite().all()):
        return None
    top = values[-1].double()
    guess = (levels / top if divides else top / levels).float()
    near = torch.arange(-_NEAR, _NEAR + 1, dtype=torch.int32, device=values.device)
    # Those of powers of two first, if there are any: they are exact either way.
    candidates = (guess.view(torch.int32)[:, None] + near).clamp(min=1).view(torch.float32).reshape(-1)
    candidates = candidates[candidates.isfinite()]
    fits = _gives(values, candidates, divides).nonzero().flatten()
    if not len(fits):
        return None
    found = candidates[fits]
    powers = (found.view(torch.int32) & 0x7FFFFF) == 0
    return float(found[powers][0] if bool(powers.any()) else found[0])


def _gives(values: Tensor, candidates: Tensor, divides: bool) -> Tensor:
    """Which numbers of the whole tensor give all of these natural scales: bool."""
    import torch

    number = candidates.to(torch.float32)[:, None]
    ratio = values.double() * number.double() if divides else values.double() / number.double()
    inner = ratio.clamp(max=_INNER).float().to(torch.float8_e4m3fn).float()
    return ((inner / number if divides else inner * number) == values).all(1)


def _nearest(natural: Tensor, usual: float, divides: bool) -> float:
    """The number of the whole tensor that changes scales least, relatively; the usual one for very many of them."""
    import torch

    values = torch.unique(natural.reshape(-1))
    values = values[values > 0].double()
    if not len(values) or len(values) > _FEW:
        return usual
    levels = torch.tensor([n for n in reversed(E4M3) if n > 0], dtype=torch.float64, device=values.device)
    numbers = (levels / values[-1] if divides else values[-1] / levels).float().double()
    numbers = numbers[(numbers >= 2.0**-100) & (numbers <= 2.0**100)][:, None]
    if not len(numbers):
        return usual
    inner = (values * numbers if divides else values / numbers).clamp(max=_INNER)
    inner = inner.float().to(torch.float8_e4m3fn).double()
    given = inner / numbers if divides else inner * numbers
    worst = ((given - values) / values).abs().amax(1)
    return float(numbers[worst.argmin(), 0])
