"""The packer of ``hqq``: codes of a few bits packed by parts of the tensor, and levels around float zero points.

A weight is seen as rows of one group each (axis 1) or columns of one group each (axis 0). Rows of codes are packed by
halves, quarters or eighths: byte ``i`` holds row ``i`` of each part, the first part in the highest bits.

Source: hqq:hqq/core/bitpack.py, hqq/core/quantize.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qformats import FieldSpec, FormatSpec, PackedTensor, Packer, QuantizedTensor
from qformats.errors import ConfigError, Described

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FAMILY", "PARTS", "HQQPacker"]

FAMILY = "hqq"
PARTS = {8: 1, 4: 2, 3: 10, 2: 4, 1: 8}
"""Codes in a byte (of 3 bits: in a word of 32), by their width."""


class HQQPacker(Packer):
    """``scale * (code - zero)``, where zero is a float; read only.

    Parameters
    ----------
    bits : int
        Width of a code: 8, 4, 3, 2 or 1.
    group_size : int
        Weights of a group.
    axis : int
        1 where groups lie along rows; 0 where they lie across them.
    scale_dtype : str
        ``"f16"``, ``"bf16"`` or ``"f32"``.
    """

    def __init__(self, bits: int, group_size: int, axis: int = 1, scale_dtype: str = "f16") -> None:
        self.bits, self.group_size, self.axis, self.scale_dtype = bits, group_size, axis, scale_dtype
        across = "" if axis else "-axis0"
        dtype = "" if scale_dtype == "f16" else f"-{scale_dtype}"
        groups, one = f"N * K / {group_size}", (str(group_size), "1")
        rows, columns = (groups, one[0]) if axis else (one[0], groups)
        each = (groups, one[1]) if axis else (one[1], groups)
        self.spec = FormatSpec(
            FAMILY,
            f"{bits}bit-{group_size}g{across}{dtype}",
            f"{bits} bits, a scale and a float zero point per {group_size} weights",
            (
                FieldSpec(
                    "W_q", (f"{rows} / {PARTS[bits]}", columns), "i32" if bits == 3 else "u8", "packed codes"
                ),
                FieldSpec("scale", each, scale_dtype, "weight units per step"),
                FieldSpec("zero", each, scale_dtype, "code of 0, a float"),
            ),
            bits=bits,
            block_size=group_size if axis else 1,
            # Groups across rows are no blocks.
            canonical=axis == 1,
            source="hqq:hqq/core/bitpack.py",
        )

    def veto(self, shape: Sequence[int]) -> str | None:
        """Whole groups, and with axis 1 whole ones in each row."""
        if len(shape) != 2:
            return f"its number of dimensions is {len(shape)} instead of 2"
        rows, columns = shape
        if not rows or not columns or rows * columns % self.group_size:
            return f"{rows} x {columns} weights do not divide into groups of {self.group_size}"
        if self.axis and columns % self.group_size:
            return f"rows of {columns} do not divide into groups of {self.group_size}"
        count = rows * columns // self.group_size if self.axis else self.group_size
        if self.bits != 3 and count % PARTS[self.bits]:
            return f"{count} rows of groups do not divide into {PARTS[self.bits]} parts"
        return None

    def row_step(self, shape: Sequence[int]) -> int:
        """Only the whole tensor: a byte holds codes of distant rows."""
        return 0

    def from_stored(self, fields: Mapping[str, Tensor], shape: tuple[int, int]) -> PackedTensor:
        """Codes, scales and zero points, checked for NaN.

        Raises
        ------
        ConfigError
            If some are not finite.
        """
        wanted = self.stored(shape)
        kept = {"W_q": fields["W_q"]}
        for name in ("scale", "zero"):
            kept[name] = fields[name].reshape(wanted[name][0])
            if not bool(kept[name].isfinite().all()):
                bad = int((~kept[name].isfinite()).sum())
                raise ConfigError(name, Described(f"{bad} values that are NaN or infinite"), "finite numbers")
        return PackedTensor(self, shape, kept)

    def _codes(self, packed: PackedTensor) -> Tensor:
        """Codes of all groups: uint8, rows of groups of axis 1, columns of axis 0."""
        import torch

        stored = packed.fields["W_q"]
        parts = PARTS[self.bits]
        count = packed.shape[0] * packed.shape[1] // self.group_size if self.axis else self.group_size
        shifts = [self.bits * (parts - 1 - part) for part in range(parts)]
        cut = [((stored >> shift) & ((1 << self.bits) - 1)).to(torch.uint8) for shift in shifts]
        return torch.cat(cut)[:count]

    def unpack(self, packed: PackedTensor) -> QuantizedTensor:
        """Codes and parameters, exactly as stored; bfloat16 becomes float32."""
        if not self.axis:
            return super().unpack(packed)
        fields, shape = self.checked(packed).fields, (int(packed.shape[0]), int(packed.shape[1]))
        groups = (shape[0], shape[1] // self.group_size)
        scale, zero = (
            (fields[name].float() if self.scale_dtype == "bf16" else fields[name]).reshape(groups)
            for name in ("scale", "zero")
        )
        return QuantizedTensor(
            self._codes(packed).reshape(shape), scale, (1, self.group_size), zero_point=zero
        )

    def dequantize(self, packed: PackedTensor) -> Tensor:
        """Values as float32."""
        if self.axis:
            return super().dequantize(packed)
        fields = self.checked(packed).fields
        codes = self._codes(packed).float()
        return ((codes - fields["zero"].float()) * fields["scale"].float()).reshape(packed.shape)
