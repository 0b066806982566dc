"""What the kernels know of a weight in the device layout: its tensors, and the numbers that are not tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "AFFINE",
    "EXPONENT",
    "FLOAT",
    "FLOAT8",
    "FLOAT8_UNIT",
    "LIFTED",
    "MINIMUM",
    "PLANES",
    "QUAD",
    "QUOTIENT",
    "STRIP",
    "TABLE",
    "WHOLE",
    "DeviceForm",
    "DeviceWeight",
    "padded_columns",
]

STRIP = 32
"""Columns of a strip."""
QUAD = 128
"""Columns that the kernels decode at once: four strips, one packed strip of 4-bit codes."""
PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)}
"""Widths of the planes by width of the code, the low bits first."""
AFFINE, MINIMUM, TABLE, FLOAT = 0, 1, 2, 3
"""Modes: ``scale * (code - zero)``; ``scale * (code - zero) + minimum``; ``scale * table[code]``; and ``scale * code``
where the codes are floats: E4M3 of 8 bits, or E2M1 of 4, counted in halves."""

LIFTED = 128
"""What is added to the whole numbers of scales in two levels, so that they are bytes without a sign."""
WHOLE, EXPONENT, FLOAT8, QUOTIENT = 0, 1, 2, 3
"""Kinds of factors: whole numbers; ``2 ** (byte - 127)``; E4M3 without a sign; E4M3, which the outer scale divides."""
FLOAT8_UNIT = 256.0
"""How much larger an outer scale is, or how much smaller a divisor, where factors are E4M3: these are decoded as what
their bits are in float16."""


class DeviceForm(NamedTuple):
    """What the kernels must know about a weight besides its tensors: only numbers, equal for layers of one kind.

    Attributes
    ----------
    rows, columns : int
        out_features and in_features.
    bits : int
        Width of a code.
    mode : int
        `AFFINE`, `MINIMUM`, `TABLE` or `FLOAT`.
    group : int
        Columns that share a scale.
    zero : int
        Device code that stands for zero, where all groups have the same.
    lift : int
        What was added to the canonical codes so that none is negative.
    code_bytes : int
        Bytes of a canonical code, negative where it is signed.
    levels : int
        Entries of the table that are real; 0 without a table.
    paired : int
        1 if float16 levels can be looked up in pairs, and 2 if bfloat16 levels can.
    outer : int
        Columns that share an outer scale, where scales are in two levels; otherwise 0.
    line : int
        Rows that lie together in the weight's tensors, where these are a part of larger ones; otherwise 0.
    height : int
        Rows that share a scale in the canonical tensor, if more than one; otherwise 0.
    inner : int
        Where scales are in two levels, the kind of the inner numbers: `WHOLE`, or `EXPONENT`, `FLOAT8` or `QUOTIENT`.
        Of the latter three a whole row has one outer number, and `outer` is 0.
    """

    rows: int
    columns: int
    bits: int
    mode: int
    group: int
    zero: int
    lift: int
    code_bytes: int
    levels: int = 0
    paired: int = 0
    outer: int = 0
    line: int = 0
    height: int = 0
    inner: int = WHOLE

    @property
    def factored(self) -> bool:
        """Whether scales are in two levels."""
        return self.outer > 0 or self.inner != WHOLE


class DeviceWeight(NamedTuple):
    """A weight in the device layout; all tensors on one device.

    Attributes
    ----------
    planes : tuple of Tensor
        int16, ``(packed strips, N, 32)`` each.
    scale : Tensor
        float16 or float32, ``(groups, N)``; ``(outers, N)`` where scales are in two levels.
    shift : Tensor or None
        Shape of `scale`: zero point of each group (float16, whole numbers, of device codes); or its minimum, in
        weight units, float16 or float32.
    table : Tensor or None
        int32, ``(100,)``: the levels, see :class:`qformats.kernels.codebook.Codebook`.
    order : Tensor or None
        int32, ``(K,)``: device column ``k`` is canonical column ``order[k]``, where columns were reordered.
    factor, shift_factor : Tensor or None
        int32, ``(padded groups / 4, N)``: by what outer scales and minima are multiplied, the first group in the lowest
        byte: whole numbers plus `LIFTED`, or the bytes of `DeviceForm.inner`.
    form : DeviceForm
        Everything that is not a tensor.
    """

    planes: tuple[Tensor, ...]
    scale: Tensor
    shift: Tensor | None
    table: Tensor | None
    order: Tensor | None
    factor: Tensor | None
    shift_factor: Tensor | None
    form: DeviceForm

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        parts = (*self.planes, *self.beside.values())
        return sum(part.numel() * part.element_size() for part in parts if part is not None)

    @property
    def beside(self) -> dict[str, Tensor | None]:
        """Every tensor that is not a plane, by name."""
        return {name: getattr(self, name) for name in self._fields[1:-1]}


def padded_columns(columns: int, bits: int) -> int:
    """Columns that the planes of a code of `bits` bits have room for."""
    unit = max(QUAD, STRIP * 16 // min(PLANES[bits]))
    return -(-columns // unit) * unit
