"""Grids of the types with scales in two levels, by ggml's own searches.

Source: llama.cpp:ggml/src/ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from qformats import AffineGrid, Grid, GridParams, QuantizedTensor, TableGrid
from qformats.errors import ConfigError, Described
from qformats.numbers import NestedScales
from qformats_gguf.superblocks.layout import LAYOUTS, SuperLayout
from qformats_gguf.superblocks.tensor import Parts, TwoLevelParams, TwoLevelTensor, carried_by

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Iq4NlGrid",
    "KGrid",
    "KTableGrid",
    "apart",
    "carrying",
    "grid_of",
    "joined_by",
    "parts_of",
    "search",
]


def search(kind: SuperLayout, weight: Tensor, importance: Tensor | None = None) -> tuple[Tensor, Parts, int]:
    """Codes, stored scales, and how many blocks have a scale beyond float16, by ggml's search; given on a CPU.

    Weights on a GPU are searched there where it has a kernel for the type.
    """
    import torch

    from qformats.numbers import empty
    from qformats_gguf.superblocks import search as compiled

    rows, columns = weight.shape
    count = columns // kind.block
    if importance is None and kind.minimum and weight.is_cuda and find_spec("triton"):
        return _on_device(kind, weight.detach())
    source = weight.detach().to("cpu", torch.float32).contiguous()
    given = None
    if importance is not None:
        spread = importance.detach().to("cpu", torch.float32).reshape(-1, count, kind.block)
        given = spread.contiguous().numpy()
    codes = empty((rows, columns), torch.uint8)
    halves = torch.zeros((rows, count, 1 + kind.minimum), dtype=torch.float16)
    scales = torch.ones((rows, count * kind.scales), dtype=torch.int8)
    minima = torch.zeros_like(scales)
    beyond = compiled.search(
        kind,
        source.numpy().reshape(-1, kind.block),
        given,
        codes.numpy().reshape(-1, kind.block),
        halves.view(torch.uint16).numpy().reshape(-1, 1 + kind.minimum),
        scales.numpy().reshape(-1, kind.scales),
        minima.numpy().reshape(-1, kind.scales),
    )
    if source.numel() and max(map(abs, map(float, source.aminmax()))) > kind.reach:
        largest = source.view(-1, kind.block).abs().amax(1)
        beyond = max(beyond, int((largest > kind.reach).sum()))
    return codes, Parts(halves, scales, minima), beyond


def _on_device(kind: SuperLayout, weight: Tensor) -> tuple[Tensor, Parts, int]:
    """The same on a GPU, for types with a minimum and weights without an importance."""
    from qformats_gguf.superblocks import affine_triton
    from qformats_gguf.superblocks.search import PLAIN

    rows, columns = weight.shape
    rule, trials, steps, absolute = PLAIN[kind.name]
    blocks = weight.reshape(-1, kind.block).contiguous()
    codes, halves, scales, minima = affine_triton.search(kind, blocks, rule, trials, steps, absolute=absolute)
    beyond = ~halves.isfinite().all(1) | (blocks.abs().amax(1) > kind.reach)
    parts = Parts(halves.view(rows, -1, 2).cpu(), scales.view(rows, -1).cpu(), minima.view(rows, -1).cpu())
    return codes.view(rows, columns).cpu(), parts, int(beyond.sum())


def _factored(kind: SuperLayout, scale: Tensor, minimum: Tensor | None) -> Parts | None:
    """Stored scales that give exactly these, ``(N, scales per row)``; ``None`` if there are none."""
    import torch

    from qformats_gguf.superblocks.factor import factor

    rows = scale.shape[0]
    blocks = scale.shape[1] // kind.scales
    halves, wholes = [], []
    ranges = [(scale, kind.lowest, kind.highest)]
    if minimum is not None:
        ranges.append((-minimum, 0, kind.highest))
    for values, low, high in ranges:
        found = factor(values.to("cpu", torch.float32).reshape(-1, kind.scales).numpy(), low, high)
        if found is None:
            return None
        halves.append(torch.from_numpy(found[0]).view(torch.float16).view(rows, blocks))
        wholes.append(torch.from_numpy(found[1]).view(rows, -1))
    minima = wholes[1] if minimum is not None else torch.zeros_like(wholes[0])
    return Parts(torch.stack(halves, -1), wholes[0], minima)


def parts_of(kind: SuperLayout, quantized: QuantizedTensor) -> Parts | None:
    """Stored scales of a canonical tensor: those that it carries if they are the same, else any; ``None`` if none are.

    Products of a float16 and a whole number are looked for in all ways, so that ``None`` is a proof.
    """
    parts = carried_by(quantized)
    if parts is not None and _gives(kind, parts, quantized):
        return parts
    return _factored(kind, quantized.scale, quantized.minimum)


def _gives(kind: SuperLayout, parts: Parts, quantized: QuantizedTensor) -> bool:
    """Whether stored scales are those of a canonical tensor."""
    import torch

    scale, minimum = quantized.scale, quantized.minimum
    if parts.scales.shape != scale.shape or (minimum is not None) != kind.minimum:
        return False
    own, low = parts.expand(kind)
    pairs = [(own, scale)] if low is None or minimum is None else [(own, scale), (low, minimum)]
    return all(torch.equal(a, b.to("cpu", torch.float32)) for a, b in pairs)


class _TwoLevelGrid(Grid):
    """What grids of both kinds of levels share."""

    searches = True

    independent = False
    type_name: str

    @property
    def layout(self) -> SuperLayout:
        """Layout of the type."""
        return LAYOUTS[self.type_name]

    def _params(self, parts: Parts, like: Tensor) -> TwoLevelParams:
        scale, minimum = parts.expand(self.layout)
        low = None if minimum is None else minimum.to(like.device)
        return TwoLevelParams(scale.to(like.device), minimum=low, parts=parts)

    def reference(self, weight: Tensor) -> tuple[Tensor, GridParams]:
        """Codes and scales as llama.cpp chooses them."""
        self.blocks(weight)
        codes, parts, _ = search(self.layout, weight)
        return codes.to(weight.device), self._params(parts, weight)

    def fit(self, weight: Tensor, importance: Tensor | None = None) -> GridParams:
        """Scales as llama.cpp chooses them, with `importance` as it does with an importance matrix."""
        self.blocks(weight)
        _, parts, _ = search(self.layout, weight, importance)
        return self._params(parts, weight)

    def quantize(self, weight: Tensor, importance: Tensor | None = None) -> QuantizedTensor:
        """Round as llama.cpp does, with `importance` as it does with an importance matrix.

        Raises
        ------
        NonFiniteError
            If a weight is so large that a scale is beyond float16.
        """
        from qformats.kernels.dense import too_large

        self.blocks(weight)
        codes, parts, beyond = search(self.layout, weight, importance)
        if beyond:
            count = weight.numel() // self.layout.block
            raise too_large(f"{beyond} of {count} blocks need a scale beyond f16", weight)
        return self.quantized(codes.to(weight.device), self._params(parts, weight))

    def nested(self, params: GridParams) -> tuple[NestedScales, ...]:
        """Scales, and minima where there are some, as they are stored; see :meth:`qformats.Grid.nested`."""
        kind, device = self.layout, params.scale.device
        parts = params.parts if isinstance(params, TwoLevelParams) else None
        if parts is None:
            parts = _factored(kind, params.scale, params.minimum)
        if parts is None:
            found = self.project(params)
            assert isinstance(found, TwoLevelParams)
            parts = found.parts
        assert parts is not None
        ranges = [(kind.lowest, kind.highest), (0, kind.highest)]
        return parts.nested(device, *ranges[: 1 + kind.minimum])

    def joined(self, nested: Sequence[NestedScales]) -> GridParams:
        """Parameters of scales as they are stored; see :meth:`qformats.Grid.joined`."""
        import torch

        signs = (1, -1)
        halves = [sign * each.outer for sign, each in zip(signs, nested, strict=False)]
        wholes = [each.inner.to("cpu", torch.int8) for each in nested]
        minima = wholes[1] if len(wholes) > 1 else torch.zeros_like(wholes[0])
        parts = Parts(torch.stack(halves, -1).to("cpu", torch.float16), wholes[0], minima)
        return self._params(parts, nested[0].inner)

    def project(self, params: GridParams) -> GridParams:
        """Nearest storable parameters: the largest scale of a block gets the last whole number."""
        import torch

        kind = self.layout
        halves, scales = _rounded(params.scale, kind, kind.lowest, kind.highest)
        parts = [halves]
        minima = scales.new_zeros(scales.shape)
        if kind.minimum:
            assert params.minimum is not None
            half, minima = _rounded(-params.minimum, kind, 0, kind.highest)
            parts.append(half)
        return self._params(Parts(torch.stack(parts, -1), scales, minima), params.scale)

    def validate(self, quantized: QuantizedTensor) -> None:
        """Refuse codes or parameters that lie off the grid; see :meth:`~qformats.Grid.validate`."""
        super().validate(quantized)
        scales = quantized.scale.shape[-1]
        if scales % self.layout.scales:
            found = f"{quantized.shape[1]} columns"
            raise ConfigError(
                "weight", Described(found), f"a multiple of {self.layout.block}, for {self.layout.name}"
            )
        if parts_of(self.layout, quantized) is None:
            found = "values that are no products of a float16 per block and whole numbers"
            raise ConfigError(
                "scale", Described(found), f"scales as {self.layout.name} stores them, in two levels"
            )


def _rounded(values: Tensor, kind: SuperLayout, low: int, high: int) -> tuple[Tensor, Tensor]:
    """A float16 per block and whole numbers whose products come near to values, ``(N, scales per row)``; on a CPU."""
    import torch

    rows = values.shape[0]
    blocks = values.to("cpu", torch.float32).reshape(rows, -1, kind.scales)
    place = blocks.abs().argmax(-1, keepdim=True)
    extreme = blocks.gather(-1, place).squeeze(-1)
    # Where the range is not symmetric, its longer end serves the extreme, whatever the signs.
    end = low if -low > high else high
    half = (extreme / end).to(torch.float16)
    inverse = torch.where(half == 0, 0.0, 1.0 / half.float()).unsqueeze(-1)
    wholes = (blocks * inverse).round().clamp(low, high).to(torch.int8)
    return half, wholes.reshape(rows, -1)


@dataclass(frozen=True)
class KGrid(_TwoLevelGrid, AffineGrid):
    """K-quants: ``d * n * (code - zero) - dmin * m``, with one ``d`` (and ``dmin``) for 256 columns.

    Attributes
    ----------
    type_name : str
        Which of them.
    """

    type_name: str = ""

    def quantized(self, codes: Tensor, params: GridParams) -> QuantizedTensor:
        """Canonical tensor that carries its scales as they are stored."""
        return _carrying(super().quantized(codes, params), params)


@dataclass(frozen=True)
class KTableGrid(_TwoLevelGrid, TableGrid):
    """iq4_xs: ``d * n * table[code]``, with one ``d`` for 256 columns.

    Attributes
    ----------
    type_name : str
        Name of the type.
    """

    type_name: str = ""

    def quantized(self, codes: Tensor, params: GridParams) -> QuantizedTensor:
        """Canonical tensor that carries its scales as they are stored."""
        return _carrying(super().quantized(codes, params), params)


@dataclass(frozen=True)
class Iq4NlGrid(TableGrid):
    """iq4_nl: ``d * table[code]``."""

    searches = True

    def reference(self, weight: Tensor) -> tuple[Tensor, GridParams]:
        """Codes and scales as llama.cpp chooses them."""
        return self._searched(weight)

    def weighted(self, weight: Tensor, importance: Tensor) -> tuple[Tensor, GridParams]:
        """Codes and scales as llama.cpp chooses them with an importance matrix."""
        return self._searched(weight, importance)

    def _searched(self, weight: Tensor, importance: Tensor | None = None) -> tuple[Tensor, GridParams]:
        self.blocks(weight)
        codes, parts, _ = search(LAYOUTS["iq4_nl"], weight, importance)
        return codes.to(weight.device), GridParams(parts.halves[..., 0].to(weight.device))

    def fit(self, weight: Tensor, importance: Tensor | None = None) -> GridParams:
        """Scales as llama.cpp chooses them, with `importance` as it does with an importance matrix."""
        return self._searched(weight, importance)[1]

    def quantize(self, weight: Tensor, importance: Tensor | None = None) -> QuantizedTensor:
        """Round as llama.cpp does, with `importance` as it does with an importance matrix.

        Raises
        ------
        NonFiniteError
            If a weight is so large that a scale is beyond float16.
        """
        from qformats.kernels.dense import too_large

        codes, params = self._searched(weight, importance)
        beyond = int((~params.scale.isfinite()).sum())
        if beyond:
            raise too_large(f"{beyond} of {params.scale.numel()} blocks need a scale beyond f16", weight)
        return self.quantized(codes, params)


def _carrying(plain: QuantizedTensor, params: GridParams) -> QuantizedTensor:
    parts = params.parts if isinstance(params, TwoLevelParams) else None
    return carrying(plain, parts)


def carrying(plain: QuantizedTensor, parts: Parts | None) -> TwoLevelTensor:
    """The same tensor with its scales as they are stored."""
    return TwoLevelTensor(
        plain.codes,
        plain.scale,
        plain.block_size,
        zero_point=plain.zero_point,
        minimum=plain.minimum,
        codebook=plain.codebook,
        parts=parts,
    )


def grid_of(kind: SuperLayout) -> AffineGrid | TableGrid:
    """Grid of a type."""
    table = tuple(map(float, kind.table))
    if not kind.two_level:
        return Iq4NlGrid(table, kind.sub, "f16")
    if table:
        return KTableGrid(table, kind.sub, "f32", type_name=kind.name)
    shape = "minimum" if kind.minimum else "symmetric"
    return KGrid(kind.bits, kind.sub, shape, "f32", type_name=kind.name)


def apart(kind: SuperLayout) -> AffineGrid | TableGrid:
    """The same levels with any scale for each sub-block."""
    if kind.table:
        return TableGrid(tuple(map(float, kind.table)), kind.sub, "f32")
    return AffineGrid(kind.bits, kind.sub, "minimum" if kind.minimum else "symmetric", "f32")


def joined_by(kind: SuperLayout, quantized: QuantizedTensor) -> QuantizedTensor | None:
    """The same values with scales of which those of a block share a float16; ``None`` if they cannot.

    Parameters
    ----------
    kind : SuperLayout
        The type.
    quantized : QuantizedTensor
        On the grid of :func:`apart`.
    """
    import torch

    from qformats_gguf.superblocks.joint import join_affine, join_levels

    rows, columns = quantized.shape
    device, blocks = quantized.codes.device, columns // kind.block
    if kind.minimum:
        assert quantized.minimum is not None
        codes = quantized.codes.cpu().numpy().reshape(-1, kind.block)
        params = (
            part.float().cpu().reshape(-1, kind.scales) for part in (quantized.scale, quantized.minimum)
        )
        found = join_affine(kind, codes, *(part.numpy() for part in params))
    else:
        values = quantized.dequantize().cpu().numpy().reshape(-1, kind.block)
        levels = join_levels(kind, values)
        found = None if levels is None else (*levels, levels[2] * 0)
    if found is None:
        return None
    moved, halves, wholes, minima = map(torch.from_numpy, found)
    parts = Parts(
        halves.view(torch.float16).view(rows, blocks, -1), wholes.view(rows, -1), minima.view(rows, -1)
    )
    scale, low = parts.expand(kind)
    plain = QuantizedTensor(
        moved.view(rows, columns).to(device),
        scale.to(device),
        quantized.block_size,
        zero_point=quantized.zero_point,
        minimum=None if low is None else low.to(device),
        codebook=quantized.codebook,
    )
    # Sums with a minimum are rounded: a last look at the numbers themselves.
    return carrying(plain, parts) if torch.equal(plain.dequantize(), quantized.dequantize()) else None
