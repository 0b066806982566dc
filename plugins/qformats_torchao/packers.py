"""The packer of ``torchao``: a byte for each code, with a scale and a zero point for each row or group.

Source: ao:torchao/quantization/quantize_/workflows/int8/int8_tensor.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qformats import FieldSpec, FormatSpec, KernelSpec, PackedTensor, Packer, QuantizedTensor
from qformats.errors import ConfigError, Described

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FAMILY", "Int8Packer"]

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

        scale = fields["_weight_scale"]
        if not bool(scale.isfinite().all()):
            bad = int((~scale.isfinite()).sum())
            raise ConfigError(
                "_weight_scale", Described(f"{bad} values that are NaN or infinite"), "finite scales"
            )
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
