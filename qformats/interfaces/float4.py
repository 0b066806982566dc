"""Weights in floats of 4 bits with scales of two numbers (NVFP4): what packers of such formats share."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from qformats.errors import ConfigError, Described, NotExactError
from qformats.exact import Answer, foresee, represent
from qformats.interfaces.packer import PackedTensor, Packer
from qformats.interfaces.spec import FieldSpec, FormatSpec, KernelSpec
from qformats.numbers import E2M1, QuantizedTensor, TableGrid
from qformats.numbers.float4 import Float4Grid, Float4Tensor, find_outer, inner_of, products

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Float4Packer"]

_BLOCK = 16
_NAN = 127
"""The byte of an E4M3 number, without its sign, that stands for NaN."""


class Float4Packer(Packer):
    """Two codes of E2M1 in a byte, a scale in E4M3 for 16 columns, and a float32 number for the whole tensor.

    A byte holds the elements ``2 j`` (low) and ``2 j + 1``. The value of an element is
    ``fl(level * fl(inner * outer))``, or ``fl(level * fl(inner / outer))``, in float32.

    Parameters
    ----------
    family, variant : str
        The two halves of the name.
    names : tuple of str
        Names of the fields: codes, scales, the number of the tensor.
    divides : bool
        Whether that number divides.
    scalar : bool
        Whether it is stored without dimensions; else in one of length 1.
    source : str
        Where the layout is defined.

    Examples
    --------
    >>> import torch
    >>> from qformats.interfaces import Float4Packer
    >>> packer = Float4Packer("mine", "nvfp4", ("codes", "scale", "scale_2"))
    >>> packed = packer.encode_reference(torch.linspace(-6, 6, 32).view(1, 32))
    >>> {name: tuple(field.shape) for name, field in packed.fields.items()}
    {'codes': (1, 16), 'scale': (1, 2), 'scale_2': (1,)}
    """

    grid: Float4Grid

    def __init__(
        self,
        family: str,
        variant: str,
        names: tuple[str, str, str],
        *,
        divides: bool = False,
        scalar: bool = False,
        source: str = "",
    ) -> None:
        self.names, self.divides, self.joint = names, divides, names[2]
        self.grid = Float4Grid(divides=divides)
        self.spec = FormatSpec(
            family,
            variant,
            "floats of 4 bits (E2M1), a float of 8 bits (E4M3) per 16 columns, one factor per tensor",
            (
                FieldSpec(names[0], ("N", "K / 2"), "u8", "packed codes"),
                FieldSpec(names[1], ("N", f"K / {_BLOCK}"), "f8_e4m3", "scales of blocks"),
                FieldSpec(
                    names[2],
                    () if scalar else ("1",),
                    "f32",
                    "divisor of scales" if divides else "factor of scales",
                ),
            ),
            bits=4,
            block_size=_BLOCK,
            source=source,
            sqnr_floor_db=20.0,
            kernel=KernelSpec(4, "float", _BLOCK, "f32"),
        )

    def veto(self, shape: Sequence[int]) -> str | None:
        """Whole blocks in each row."""
        problem = super().veto(shape)
        return problem or (None if shape[0] and shape[1] else f"it is empty ({shape[0]} x {shape[1]})")

    def sharing(self, largest: float) -> Packer:
        """The format, with a number per tensor for tensors up to this magnitude at least."""
        other = copy.copy(self)
        other.grid = replace(self.grid, largest=largest)
        return other

    def keeping(self, parts: Iterable[QuantizedTensor]) -> Packer:
        """The format, with a number per tensor with which all of these stay unchanged; itself if there is none."""
        import torch

        scales, known = [], []
        try:
            for part in parts:
                levels = self._levels(part)
                scales.append(torch.unique(levels.scale.to(torch.float32).abs()))
                known.append(levels.outer if isinstance(levels, Float4Tensor) else None)
        except NotExactError:
            return self
        same = known[0] if len(set(known)) == 1 else None
        outer = find_outer(torch.cat(scales), divides=self.divides, known=same) if scales else None
        if outer is None:
            return self
        other = copy.copy(self)
        other.grid = replace(self.grid, first=outer)
        return other

    def row_step(self, shape: Sequence[int]) -> int:
        """Only the whole tensor, which has one number."""
        return 0

    def row_packer(self, shape: Sequence[int]) -> Packer | None:
        """The format itself: blocks lie within rows."""
        return self

    def scales(self, packed: PackedTensor) -> Sequence[Tensor]:
        """Scales as products (or quotients)."""
        return [self._scale(packed)]

    def from_stored(self, fields: Mapping[str, Tensor], shape: tuple[int, int]) -> PackedTensor:
        """Codes and scales, checked for NaN; the number of the tensor in the dimensions that are written.

        Raises
        ------
        ConfigError
            If a scale stands for NaN, or the number of the tensor is not finite and positive.
        """
        kept = {name: fields[name] for name in self.names}
        wanted, _ = self.stored(shape)[self.names[2]]
        kept[self.names[2]] = kept[self.names[2]].float().reshape(wanted)
        self._sound(kept)
        return PackedTensor(self, shape, kept)

    def _sound(self, fields: Mapping[str, Tensor]) -> float:
        """The number of the tensor, after a look at it and at the scales."""
        import torch

        outer = float(fields[self.names[2]])
        if not 0 < outer < float("inf"):
            raise ConfigError(self.names[2], outer, "a finite number above 0")
        stored = fields[self.names[1]].contiguous().view(torch.uint8) & _NAN
        if bool((stored == _NAN).any()):
            raise ConfigError(self.names[1], Described("codes of NaN"), "finite scales")
        return outer

    def _scale(self, packed: PackedTensor) -> Tensor:
        """Scales of twice the levels: float32 ``(N, K / 16)``."""
        fields = packed.fields
        return products(fields[self.names[1]].float(), self._sound(fields), self.divides)

    def foresee(self, source: Packer, shape: Sequence[int]) -> tuple[Answer, str]:
        """Whether :meth:`represent` accepts what `source` stores; see :meth:`~qformats.Packer.foresee`."""
        problem = self.veto(shape)
        if problem:
            return Answer.NEVER, problem
        if not source.spec.level or source.grid is None:
            return super().foresee(source, shape)
        if isinstance(source.grid, Float4Grid):
            if source.grid.divides == self.divides:
                return Answer.ALWAYS, ""
            return Answer.DATA, "its number per tensor is stored as the reciprocal of that here"
        own = TableGrid(E2M1, _BLOCK)
        answer, reason = foresee(source.grid, own, (int(shape[0]), int(shape[1])))
        if answer is Answer.NEVER:
            return answer, reason
        return Answer.DATA, reason or "its scales must be numbers of E4M3 times one number"

    def represent(self, quantized: QuantizedTensor) -> QuantizedTensor:
        """Canonical tensor of the same values; see :meth:`~qformats.Packer.represent`."""
        return self.grid.settled(self._levels(quantized))

    def _levels(self, quantized: QuantizedTensor) -> QuantizedTensor:
        """The same values as levels of E2M1 in blocks of 16, whatever their scales."""
        import torch

        problem = self.veto(quantized.shape)
        if problem:
            raise NotExactError(problem)
        table = self.grid.table(quantized.codes)
        known = quantized.codebook is not None and torch.equal(quantized.codebook.float(), table)
        within = quantized.block_size == (1, _BLOCK) and quantized.minimum is None and quantized.g_idx is None
        return quantized if known and within else represent(quantized, TableGrid(E2M1, _BLOCK))

    def pack(self, quantized: QuantizedTensor) -> PackedTensor:
        """Bytes of codes and scales; all are stored unchanged.

        Raises
        ------
        ConfigError
            If they do not lie on the grid.
        ShapeError
            If rows do not divide into blocks.
        """
        self.require(quantized.shape)
        stored, inner, outer = self._parts(quantized)
        wanted, _ = self.stored(quantized.shape)[self.names[2]]
        both = stored[:, ::2] | stored[:, 1::2] << 4
        fields = {self.names[0]: both, self.names[1]: inner, self.names[2]: outer.reshape(wanted)}
        return PackedTensor(self, quantized.shape, fields)

    def _parts(self, quantized: QuantizedTensor) -> tuple[Tensor, Tensor, Tensor]:
        """Stored codes of elements, uint8 ``(N, K)``; inner numbers in E4M3; and the number of the tensor."""
        import torch

        self.grid.validate(quantized)
        settled = self.grid.settled(quantized)
        stored = self.grid.stored(settled.codes)
        inner = inner_of(settled.scale, settled.outer, self.divides)
        return stored, inner, torch.tensor([settled.outer], dtype=torch.float32)

    def unpack(self, packed: PackedTensor) -> QuantizedTensor:
        """Codes and scales; the code of -0 becomes that of 0."""
        import torch

        both = self.checked(packed).fields[self.names[0]]
        stored = torch.stack([both & 15, both >> 4], -1).flatten(1)
        return self._canonical(stored, self._scale(packed), float(packed.fields[self.names[2]]))

    def _canonical(self, stored: Tensor, scale: Tensor, outer: float) -> Float4Tensor:
        codes = self.grid.places(stored)
        table = self.grid.table(codes)
        return Float4Tensor(codes, scale, (1, _BLOCK), codebook=table, outer=outer, divides=self.divides)
