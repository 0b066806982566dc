"""Packers of MLX's modes in floats: E2M1 and E4M3 numbers with one scale of 8 bits for each group, and no bias.

Words of 32 bits hold codes from the low bits on, so that their bytes are those of other programs: the elements ``2 j``
(low) and ``2 j + 1``, or one element each. Levels of E2M1 are twice, and scales half, of what is stored, as in
:mod:`qformats.numbers`: the same numbers have the same codes everywhere.

Source: mlx:mlx/backend/cpu/quantized.cpp (``fp_quantize``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from qformats import (
    FieldSpec,
    FormatSpec,
    GridParams,
    KernelSpec,
    PackedTensor,
    QuantizedTensor,
)
from qformats.errors import ConfigError, Described, NotExactError
from qformats.interfaces import Answer, Float8Packer, Packer
from qformats.numbers import (
    E2M1,
    Float4Grid,
    Float4Tensor,
    RuledGrid,
    expand_blocks,
    half_powers,
    nearest_power,
    quotient,
    stored_exponents,
)
from qformats_mlx.packers import FAMILY, FolderPacker

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MODES", "Float4Words", "Float8Words"]

_SOURCE = "mlx:mlx/backend/cpu/quantized.cpp"
_MIDDLES = tuple((a + b) / 2 for a, b in pairwise(level for level in E2M1 if level >= 0))
_NAN = {"mxfp4": 255, "nvfp4": 127, "mxfp8": 255}
"""The byte of a scale that stands for NaN."""


@dataclass(frozen=True)
class _WordGrid(RuledGrid):
    """E2M1 times a scale of 8 bits; codes are the nearest, ties to the smaller magnitude."""

    codebook: tuple[float, ...] = E2M1
    block_size: int = 32

    def encode(self, weight: Tensor, params: GridParams) -> Tensor:
        """Codes of the nearest levels."""
        import torch

        shape = (int(weight.shape[0]), int(weight.shape[1]))
        scale = expand_blocks(params.scale.double(), shape, (1, self.columns(weight)))
        unit = torch.where(scale == 0, torch.zeros_like(scale), weight.double() / scale)
        middles = torch.tensor(_MIDDLES, dtype=torch.float64, device=weight.device)
        place = torch.bucketize(unit.abs().contiguous(), middles).to(torch.uint8)
        return torch.where(unit < 0, 7 - place, 7 + place)

    def reference(self, weight: Tensor) -> tuple[Tensor, GridParams]:
        """Codes and scales by the program's rule: the largest magnitude is 6 at most, or 6 nearly."""
        largest = self.blocks(weight.float()).abs().amax(-1)
        params = GridParams(self._scale(quotient(largest, 6.0)))
        return self.encode(weight.float(), params), params

    def _scale(self, wanted: Tensor) -> Tensor:
        """Scales for what would fit (natural ones, not halved)."""
        raise NotImplementedError


@dataclass(frozen=True)
class _PowerGrid(_WordGrid):
    """Scales are powers of two."""

    def storable(self, values: Tensor) -> Tensor:
        """Nearest powers of two; the largest exponent stands for NaN."""
        return nearest_power(values)

    def _scale(self, wanted: Tensor) -> Tensor:
        """The next power of two above; of zeros, 1."""
        import torch

        mantissa, exponent = torch.frexp(wanted.double())
        whole = (exponent - (mantissa == 0.5).int()).clamp(-127, 127)
        whole = torch.where(wanted == 0, torch.zeros_like(whole), whole)
        return torch.exp2(whole.double() - 1).float()


@dataclass(frozen=True)
class _FloatGrid(_WordGrid):
    """Scales are numbers of E4M3 that are not negative."""

    block_size: int = 16

    def storable(self, values: Tensor) -> Tensor:
        """Nearest halves of numbers of E4M3."""
        import torch

        natural = (2 * values.abs().double()).clamp(max=448.0).float()
        nearest = natural.to(torch.float8_e4m3fn).float() / 2
        return torch.where(values.isfinite(), nearest, values.to(torch.float32))

    def _scale(self, wanted: Tensor) -> Tensor:
        return self.storable(wanted / 2)


class Float4Words(FolderPacker):
    """``mxfp4`` and ``nvfp4``.

    Parameters
    ----------
    mode : str
        ``"mxfp4"``: a power of two for 32 columns; ``"nvfp4"``: a number of E4M3 for 16.

    Examples
    --------
    >>> import torch
    >>> from qformats_mlx.floats import Float4Words
    >>> packed = Float4Words("mxfp4").encode_reference(torch.linspace(-6, 6, 32).view(1, 32))
    >>> packed.fields["scales"].tolist(), tuple(packed.fields["weight"].shape)
    ([[127]], (1, 4))
    """

    bits = 4

    def __init__(self, mode: str) -> None:
        self.mode, powers = mode, mode == "mxfp4"
        self.grid: _WordGrid = _PowerGrid() if powers else _FloatGrid()
        self.group_size = self.grid.block_size
        kind = "a power of two" if powers else "a float of 8 bits (E4M3)"
        self.spec = FormatSpec(
            FAMILY,
            mode,
            f"floats of 4 bits (E2M1), {kind} per {self.group_size} columns",
            (
                FieldSpec("weight", ("N", "K / 8"), "u32", "packed codes"),
                FieldSpec(
                    "scales",
                    ("N", f"K / {self.group_size}"),
                    "u8",
                    "exponents of scales" if powers else "scales in E4M3",
                ),
            ),
            bits=4,
            block_size=self.group_size,
            source=_SOURCE,
            # Without a number for the tensor, scales of small weights lose bits of their mantissa.
            sqnr_floor_db=18.0 if powers else 19.0,
            kernel=KernelSpec(4, "float", self.group_size, "f32"),
        )

    def veto(self, shape: Sequence[int]) -> str | None:
        """Whole groups in each row."""
        problem = super().veto(shape)
        return problem or (None if shape[0] and shape[1] else f"it is empty ({shape[0]} x {shape[1]})")

    def row_packer(self, shape: Sequence[int]) -> Packer | None:
        """The format itself: groups lie within rows."""
        return self

    def scales(self, packed: PackedTensor) -> Sequence[Tensor]:
        """Scales, and NaN in place of those of which the largest times a code are beyond float32."""
        import torch

        scale = self._scale(packed.fields["scales"])
        return [torch.where(scale * E2M1[-1] < torch.inf, scale, torch.nan)]

    def from_stored(self, fields: Mapping[str, Tensor], shape: tuple[int, int]) -> PackedTensor:
        """Words and scales, checked for NaN.

        Raises
        ------
        ConfigError
            If a scale stands for NaN, or has a sign.
        """
        _sound(fields["scales"], self.mode)
        return PackedTensor(self, shape, {name: fields[name] for name in ("weight", "scales")})

    def _scale(self, stored: Tensor) -> Tensor:
        """Scales of twice the levels: float32."""
        import torch

        if self.mode == "mxfp4":
            return half_powers(stored)
        return stored.contiguous().view(torch.float8_e4m3fn).float() / 2

    def pack(self, quantized: QuantizedTensor) -> PackedTensor:
        """Words of codes, and scales; both are stored unchanged."""
        import torch

        self.require(quantized.shape)
        self.grid.validate(quantized)
        stored = Float4Grid.stored(quantized.codes)
        both = (stored[:, ::2] | stored[:, 1::2] << 4).contiguous()
        if self.mode == "mxfp4":
            scales = stored_exponents(quantized.scale)
        else:
            scales = (2 * quantized.scale.float()).to(torch.float8_e4m3fn).view(torch.uint8)
        fields = {"weight": both.view(torch.uint32), "scales": scales}
        return PackedTensor(self, quantized.shape, fields)

    def unpack(self, packed: PackedTensor) -> QuantizedTensor:
        """Codes and scales; the code of -0 becomes that of 0."""
        import torch

        fields = self.checked(packed).fields
        _sound(fields["scales"], self.mode)
        both = _bytes(fields["weight"])
        codes = Float4Grid.places(torch.stack([both & 15, both >> 4], -1).flatten(1))
        scale, block, table = self._scale(fields["scales"]), (1, self.group_size), self.grid.table(codes)
        if self.mode == "mxfp4":
            return QuantizedTensor(codes, scale, block, codebook=table)
        return Float4Tensor(codes, scale, block, codebook=table, outer=1.0)


class Float8Words(FolderPacker):
    """``mxfp8``: numbers of E4M3, a power of two for 32 columns.

    Examples
    --------
    >>> import torch
    >>> from qformats_mlx.floats import Float8Words
    >>> packed = Float8Words().encode_reference(torch.linspace(-448, 448, 32).view(1, 32))
    >>> packed.fields["scales"].tolist(), tuple(packed.fields["weight"].shape)
    ([[127]], (1, 8))
    """

    bits, group_size, mode = 8, 32, "mxfp8"

    def __init__(self) -> None:
        self.plain = Float8Packer(FAMILY, self.mode, "scales", (1, self.group_size), "f8_e8m0")
        self.grid = self.plain.numbers
        self.spec = FormatSpec(
            FAMILY,
            self.mode,
            f"floats of 8 bits (E4M3), a power of two per {self.group_size} columns",
            (
                FieldSpec("weight", ("N", "K / 4"), "u32", "four numbers each"),
                FieldSpec("scales", ("N", f"K / {self.group_size}"), "u8", "exponents of scales"),
            ),
            bits=8,
            block_size=self.group_size,
            source=_SOURCE,
            sqnr_floor_db=31.0,
            kernel=KernelSpec(8, "float", self.group_size, "f32"),
        )

    def veto(self, shape: Sequence[int]) -> str | None:
        """Whole groups in each row."""
        problem = super().veto(shape)
        return problem or (None if shape[0] and shape[1] else f"it is empty ({shape[0]} x {shape[1]})")

    def row_packer(self, shape: Sequence[int]) -> Packer | None:
        """The format itself: groups lie within rows."""
        return self

    def scales(self, packed: PackedTensor) -> Sequence[Tensor]:
        """Powers of two as float32."""
        return self.plain.scales(self._opened(packed))

    def foresee(self, source: Packer, shape: Sequence[int]) -> tuple[Answer, str]:
        """Whether :meth:`represent` accepts what `source` stores; see :meth:`~qformats.Packer.foresee`."""
        problem = self.veto(shape)
        if problem:
            return Answer.NEVER, problem
        return self.plain.foresee(source.plain if isinstance(source, Float8Words) else source, shape)

    def represent(self, quantized: QuantizedTensor) -> QuantizedTensor:
        """Canonical tensor of the same values; see :meth:`~qformats.Packer.represent`."""
        problem = self.veto(quantized.shape)
        if problem:
            raise NotExactError(problem)
        return self.plain.represent(quantized)

    def from_stored(self, fields: Mapping[str, Tensor], shape: tuple[int, int]) -> PackedTensor:
        """Words and scales, checked for NaN.

        Raises
        ------
        ConfigError
            If a weight or a scale is NaN.
        """
        _sound(fields["scales"], self.mode)
        packed = PackedTensor(self, shape, {name: fields[name] for name in ("weight", "scales")})
        self.plain.from_stored(self._opened(packed).fields, shape)
        return packed

    def _opened(self, packed: PackedTensor) -> PackedTensor:
        """The same bytes as numbers."""
        import torch

        fields = packed.fields
        numbers = {
            "weight": _bytes(fields["weight"]).view(torch.float8_e4m3fn),
            "scales": fields["scales"].contiguous().view(torch.float8_e8m0fnu),
        }
        return PackedTensor(self.plain, packed.shape, numbers)

    def pack(self, quantized: QuantizedTensor) -> PackedTensor:
        """Bytes of numbers and exponents; both are stored unchanged."""
        import torch

        self.require(quantized.shape)
        fields = self.plain.pack(quantized).fields
        words = {
            "weight": fields["weight"].contiguous().view(torch.uint8).view(torch.uint32),
            "scales": fields["scales"].contiguous().view(torch.uint8),
        }
        return PackedTensor(self, quantized.shape, words)

    def unpack(self, packed: PackedTensor) -> QuantizedTensor:
        """Codes and scales; the code of -0 becomes that of 0."""
        fields = self.checked(packed).fields
        _sound(fields["scales"], self.mode)
        return self.plain.unpack(self._opened(packed))


MODES: Mapping[str, Float4Words | Float8Words] = {
    "mxfp4": Float4Words("mxfp4"),
    "nvfp4": Float4Words("nvfp4"),
    "mxfp8": Float8Words(),
}
"""A packer of each mode; all of them have one group size."""


def _bytes(words: Tensor) -> Tensor:
    """Bytes of words: uint8."""
    import torch

    # A row of one word counts as contiguous whatever its stride, and has no view of its bytes then.
    return words.clone(memory_format=torch.contiguous_format).view(torch.uint8)


def _sound(scales: Tensor, mode: str) -> None:
    """Refuse scales of NaN, and negative ones, which no program writes."""
    worst = _NAN[mode]
    bad = int((scales >= worst).sum())
    if bad:
        kind = "NaN" if worst == 255 else "NaN or negative numbers"
        raise ConfigError("scales", Described(f"{bad} codes of {kind}"), "finite scales")
