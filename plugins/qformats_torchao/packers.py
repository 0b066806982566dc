"""Packers of ``torchao``: codes of 8 bits with a scale and an integer zero point, and of 4 bits with a float one.

Source: ao:torchao/quantization/quantize_/workflows/int8/int8_tensor.py, workflows/int4/int4_tensor.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qformats import FieldSpec, FormatSpec, KernelSpec, PackedTensor, Packer, QuantizedTensor
from qformats.errors import ConfigError, Described

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FAMILY", "Int4Packer", "Int8Packer", "finite"]

FAMILY = "torchao"


class Int8Packer(Packer):
    """``Int8Tensor``: ``scale * (code - zero)``; read only.

    Parameters
    ----------
    group_size : int
        Columns of a group; 0 for the whole row.
    scale_dtype : str
        ``"f32"``, ``"bf16"`` or ``"f16"``.
    """

    def __init__(self, group_size: int = 0, scale_dtype: str = "f32") -> None:
        self.group_size, self.scale_dtype = group_size, scale_dtype
        groups = f"K / {group_size}" if group_size else "1"
        named = (f"-{group_size}g" if group_size else "") + (
            "" if scale_dtype == "f32" else f"-{scale_dtype}"
        )
        self.spec = FormatSpec(
            FAMILY,
            f"int8{named}",
            "8 bits, a scale and zero point per " + (f"{group_size} columns" if group_size else "row"),
            (
                FieldSpec("_weight_qdata", ("N", "K"), "i8", "codes"),
                FieldSpec("_weight_scale", ("N", groups), scale_dtype, "weight units per step"),
                FieldSpec("_weight_zero_point", ("N", groups), "i8", "zero points"),
            ),
            bits=8,
            block_size=group_size,
            source="ao:torchao/quantization/quantize_/workflows/int8/int8_tensor.py",
            kernel=KernelSpec(8, "affine", group_size, "f16" if scale_dtype == "f16" else "f32"),
        )

    def veto(self, shape: Sequence[int]) -> str | None:
        """Whole groups in each row."""
        problem = super().veto(shape)
        return problem or (None if shape[0] and shape[1] else f"it is empty ({shape[0]} x {shape[1]})")

    def from_stored(self, fields: Mapping[str, Tensor], shape: tuple[int, int]) -> PackedTensor:
        """The fields; where there are no zero points, they are 0.

        Raises
        ------
        ConfigError
            If a scale is not finite.
        """
        import torch

        finite(fields, "_weight_scale")
        scale = fields["_weight_scale"]
        zero = fields.get("_weight_zero_point")
        kept = {"_weight_qdata": fields["_weight_qdata"], "_weight_scale": scale}
        kept["_weight_zero_point"] = torch.zeros_like(scale, dtype=torch.int8) if zero is None else zero
        return PackedTensor(self, shape, kept)

    def unpack(self, packed: PackedTensor) -> QuantizedTensor:
        """Codes and parameters, exactly as stored; codes and zero points count from -128."""
        import torch

        fields = self.checked(packed).fields
        codes, zero = (
            fields[name].contiguous().view(torch.uint8) ^ 128
            for name in ("_weight_qdata", "_weight_zero_point")
        )
        scale = fields["_weight_scale"].float() if self.scale_dtype == "bf16" else fields["_weight_scale"]
        return QuantizedTensor(codes, scale, (1, self.group_size or int(packed.shape[1])), zero_point=zero)


class Int4Packer(Packer):
    """``Int4Tensor``: ``scale * code + zero`` with codes from -8 to 7; read only.

    A byte holds the codes of the columns ``2 j`` (low) and ``2 j + 1``, in two's complement. Scales and zero points
    lie with a row for each group, as the kernels take them; zero points are weights, not codes.

    Parameters
    ----------
    group_size : int
        Columns of a group.
    scale_dtype : str
        ``"f32"``, ``"bf16"`` or ``"f16"``.
    """

    def __init__(self, group_size: int = 128, scale_dtype: str = "f32") -> None:
        self.group_size, self.scale_dtype = group_size, scale_dtype
        groups = f"K / {group_size}"
        self.spec = FormatSpec(
            FAMILY,
            f"int4-{group_size}g" + ("" if scale_dtype == "f32" else f"-{scale_dtype}"),
            f"4 bits, a scale and a float zero point per {group_size} columns",
            (
                FieldSpec("_weight_qdata", ("N", "K / 2"), "i8", "packed codes"),
                FieldSpec("_weight_scale", (groups, "N"), scale_dtype, "weight units per step"),
                FieldSpec("_weight_zero_point", (groups, "N"), scale_dtype, "weight units of code 0"),
            ),
            bits=4,
            block_size=group_size,
            source="ao:torchao/quantization/quantize_/workflows/int4/int4_tensor.py",
            kernel=KernelSpec(4, "minimum", group_size, "f16" if scale_dtype == "f16" else "f32"),
        )

    def veto(self, shape: Sequence[int]) -> str | None:
        """Whole groups in each row, and whole bytes."""
        problem = super().veto(shape)
        if problem:
            return problem
        if not (shape[0] and shape[1]):
            return f"it is empty ({shape[0]} x {shape[1]})"
        return f"rows of {shape[1]} codes do not fill their bytes" if shape[1] % 2 else None

    def row_step(self, shape: Sequence[int]) -> int:
        """Only the whole tensor: scales of a row are not next to each other."""
        return 0

    def from_stored(self, fields: Mapping[str, Tensor], shape: tuple[int, int]) -> PackedTensor:
        """The fields, checked for NaN.

        Raises
        ------
        ConfigError
            If a scale or a zero point is not finite.
        """
        for name in ("_weight_scale", "_weight_zero_point"):
            finite(fields, name)
        return PackedTensor(self, shape, {spec.name: fields[spec.name] for spec in self.spec.fields})

    def unpack(self, packed: PackedTensor) -> QuantizedTensor:
        """Codes and parameters, exactly as stored; codes count from -8, and bfloat16 becomes float32."""
        import torch

        fields = self.checked(packed).fields
        both = fields["_weight_qdata"].contiguous().view(torch.uint8)
        codes = torch.stack([both & 15, both >> 4], -1).flatten(1) ^ 8
        scale, zero = (
            (part.float() if self.scale_dtype == "bf16" else part).t().contiguous()
            for part in (fields["_weight_scale"], fields["_weight_zero_point"])
        )
        return QuantizedTensor(codes, scale, (1, self.group_size), zero_point=8, minimum=zero)


def finite(fields: Mapping[str, Tensor], name: str) -> None:
    """Refuse NaN and infinities."""
    bad = int((~fields[name].isfinite()).sum())
    if bad:
        raise ConfigError(name, Described(f"{bad} values that are NaN or infinite"), "finite numbers")
