"""Packers of ``quanto``: bytes or FP8 with a scale per row, and codes of few bits with a shift.

Source: optimum-quanto:optimum/quanto/tensor/weights, tensor/packed.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qformats import FieldSpec, FormatSpec, KernelSpec, PackedTensor, Packer, QuantizedTensor
from qformats.errors import ConfigError, Described

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FAMILY", "BytePacker", "ShiftedPacker"]

FAMILY = "quanto"
_CODES, _SCALE, _SHIFT = "weight._data", "weight._scale", "weight._shift"


class BytePacker(Packer):
    """``qint8``: a signed byte for each code, a scale per row; read only.

    Parameters
    ----------
    scale_dtype : str
        ``"f32"``, ``"bf16"`` or ``"f16"``.
    """

    def __init__(self, scale_dtype: str = "f32") -> None:
        self.scale_dtype = scale_dtype
        self.spec = FormatSpec(
            FAMILY,
            "qint8" + named(scale_dtype),
            "8 bits, one scale per row",
            (
                FieldSpec(_CODES, ("N", "K"), "i8", "codes"),
                FieldSpec(_SCALE, ("N", "1"), scale_dtype, "weight units per step"),
            ),
            bits=8,
            block_size=0,
            source="optimum-quanto:optimum/quanto/tensor/weights/qbytes.py",
            kernel=KernelSpec(8, "affine", 0, "f16" if scale_dtype == "f16" else "f32"),
        )

    def from_stored(self, fields: Mapping[str, Tensor], shape: tuple[int, int]) -> PackedTensor:
        """Codes and scales, checked for NaN.

        Raises
        ------
        ConfigError
            If a scale is not finite.
        """
        finite(fields, _SCALE)
        return PackedTensor(self, shape, {name: fields[name] for name in (_CODES, _SCALE)})

    def unpack(self, packed: PackedTensor) -> QuantizedTensor:
        """Codes and scales, exactly as stored; bfloat16 becomes float32."""
        import torch

        fields = self.checked(packed).fields
        codes = fields[_CODES].contiguous().view(torch.uint8) ^ 128
        scale = fields[_SCALE].float() if self.scale_dtype == "bf16" else fields[_SCALE]
        return QuantizedTensor(codes, scale, (1, max(1, int(packed.shape[1]))), zero_point=128)


class ShiftedPacker(Packer):
    """``qint4`` and ``qint2``: ``scale * code - shift`` per row or group; read only.

    Groups of a row lie below each other, as rows of a longer matrix; a byte holds codes of distant rows of that.

    Parameters
    ----------
    bits : int
        Width of a code: 4 or 2.
    group_size : int
        Columns of a group; 0 for the whole row.
    scale_dtype : str
        ``"f32"``, ``"bf16"`` or ``"f16"``.
    """

    def __init__(self, bits: int, group_size: int = 0, scale_dtype: str = "f32") -> None:
        self.bits, self.group_size, self.scale_dtype = bits, group_size, scale_dtype
        count, width = (f"N * K / {group_size}", str(group_size)) if group_size else ("N", "K")
        each = f"{group_size} columns" if group_size else "row"
        self.spec = FormatSpec(
            FAMILY,
            f"qint{bits}" + (f"-{group_size}g" if group_size else "") + named(scale_dtype),
            f"{bits} bits, one scale and shift per {each}",
            (
                FieldSpec(f"{_CODES}._data", (f"{count} / {8 // bits}", width), "u8", "packed codes"),
                FieldSpec(_SCALE, (count, "1"), scale_dtype, "weight units per step"),
                FieldSpec(_SHIFT, (count, "1"), scale_dtype, "weight units, subtracted"),
            ),
            bits=bits,
            block_size=group_size,
            source="optimum-quanto:optimum/quanto/tensor/packed.py",
            kernel=KernelSpec(bits, "minimum", group_size, "f16" if scale_dtype == "f16" else "f32"),
        )

    def veto(self, shape: Sequence[int]) -> str | None:
        """Whole groups in each row."""
        problem = super().veto(shape)
        return problem or (None if shape[0] and shape[1] else f"it is empty ({shape[0]} x {shape[1]})")

    def row_step(self, shape: Sequence[int]) -> int:
        """Only the whole tensor."""
        return 0

    def from_stored(self, fields: Mapping[str, Tensor], shape: tuple[int, int]) -> PackedTensor:
        """Codes, scales and shifts, checked for NaN.

        Raises
        ------
        ConfigError
            If a scale or shift is not finite.
        """
        for name in (_SCALE, _SHIFT):
            finite(fields, name)
        return PackedTensor(self, shape, {spec.name: fields[spec.name] for spec in self.spec.fields})

    def unpack(self, packed: PackedTensor) -> QuantizedTensor:
        """Codes, scales and minima, which are shifts with the other sign; bfloat16 becomes float32."""
        import torch

        fields = self.checked(packed).fields
        stored = fields[f"{_CODES}._data"]
        shifts = range(0, 8, self.bits)
        rows, columns = int(packed.shape[0]), int(packed.shape[1])
        width = self.group_size or columns
        codes = torch.cat([(stored >> shift) & ((1 << self.bits) - 1) for shift in shifts])
        scale, shift = (
            (fields[name].float() if self.scale_dtype == "bf16" else fields[name]).view(
                rows, columns // width
            )
            for name in (_SCALE, _SHIFT)
        )
        codes = codes[: rows * (columns // width)].view(rows, columns)
        return QuantizedTensor(codes, scale, (1, width), minimum=-shift)


def named(scale_dtype: str) -> str:
    """End of a variant's name."""
    return "" if scale_dtype == "f32" else f"-{scale_dtype}"


def finite(fields: Mapping[str, Tensor], name: str) -> None:
    """Refuse NaN and infinities."""
    bad = int((~fields[name].isfinite()).sum())
    if bad:
        raise ConfigError(name, Described(f"{bad} values that are NaN or infinite"), "finite numbers")
