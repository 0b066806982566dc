"""The packer of ``mlx``: codes as a stream of bits in words, and a scale and a bias for each group of columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qformats import FieldSpec, FormatSpec, KernelSpec, PackedTensor, Packer, QuantizedTensor
from qformats.errors import ConfigError, Described, ShapeError
from qformats.numbers import pack_bits, torch_dtype, unpack_bits
from qformats_mlx.grid import MLXGrid

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BITS", "FAMILY", "GROUPS", "FolderPacker", "MLXPacker"]

FAMILY = "mlx"
BITS = (2, 3, 4, 5, 6, 8)
"""Widths of codes that the program has."""
GROUPS = (32, 64, 128)
"""Columns of a group that it has."""
_SQNR_DB = {4: 20.4, 8: 44.9}
"""Signal-to-noise ratio that groups of 64 reach, by width; measured with normally distributed weights."""


class FolderPacker(Packer):
    """A packer that may stand for what a folder declares."""

    bits: int
    group_size: int
    mode = "affine"
    declared: Mapping[str, FolderPacker | None] = {}
    """Formats that a folder declares for modules, by name; None for plain ones."""


class MLXPacker(FolderPacker):
    """``scale * code + bias``.

    Parameters
    ----------
    bits : int
        Width of a code.
    group_size : int
        Columns of a group.
    scale_dtype : str
        Of scales and biases, which in folders have the dtype of the model: ``"f16"``, ``"bf16"`` or ``"f32"``.

    Examples
    --------
    >>> import torch
    >>> from qformats_mlx.packers import MLXPacker
    >>> packed = MLXPacker(4, 32).encode_reference(torch.linspace(-1, 1, 64).view(1, 64))
    >>> {name: tuple(field.shape) for name, field in packed.fields.items()}
    {'weight': (1, 8), 'scales': (1, 2), 'biases': (1, 2)}
    """

    grid: MLXGrid

    def __init__(self, bits: int, group_size: int, scale_dtype: str = "f16") -> None:
        self.bits, self.group_size, self.scale_dtype = bits, group_size, scale_dtype
        self.grid = MLXGrid(bits, group_size, "minimum", scale_dtype)
        variant = f"{bits}bit-{group_size}g" + ("" if scale_dtype == "f16" else f"-{scale_dtype}")
        groups = f"K / {group_size}"
        self.spec = FormatSpec(
            FAMILY,
            variant,
            f"{bits} bits, one scale and bias per {group_size} columns",
            (
                FieldSpec("weight", ("N", f"K * {bits} / 32"), "u32", "packed codes"),
                FieldSpec("scales", ("N", groups), scale_dtype, "weight units per step"),
                FieldSpec("biases", ("N", groups), scale_dtype, "weight units of code 0"),
            ),
            bits=bits,
            block_size=group_size,
            source="mlx:mlx/backend/cpu/quantized.cpp",
            sqnr_floor_db=_SQNR_DB.get(bits) if group_size == 64 and scale_dtype == "f16" else None,
            kernel=KernelSpec(bits, "minimum", group_size, "f16" if scale_dtype == "f16" else "f32"),
        )

    def veto(self, shape: Sequence[int]) -> str | None:
        """Whole groups in each row."""
        problem = super().veto(shape)
        return problem or (None if shape[0] and shape[1] else f"it is empty ({shape[0]} x {shape[1]})")

    def row_packer(self, shape: Sequence[int]) -> Packer | None:
        """The format itself: groups lie within rows."""
        return self

    def from_stored(self, fields: Mapping[str, Tensor], shape: tuple[int, int]) -> PackedTensor:
        """Words, scales and biases, checked for NaN.

        Raises
        ------
        ConfigError
            If a scale or a bias is not finite.
        """
        for name in ("scales", "biases"):
            if not bool(fields[name].isfinite().all()):
                bad = int((~fields[name].isfinite()).sum())
                raise ConfigError(name, Described(f"{bad} values that are NaN or infinite"), "finite numbers")
        return PackedTensor(self, shape, {name: fields[name] for name in ("weight", "scales", "biases")})

    def pack(self, quantized: QuantizedTensor) -> PackedTensor:
        """Bytes of codes and parameters; all are stored unchanged.

        Raises
        ------
        ConfigError
            If groups are not those of this format.
        ShapeError
            If rows do not divide into groups.
        """
        import torch

        self.require(quantized.shape)
        block = (1, self.group_size)
        plain = quantized.codebook is None and quantized.g_idx is None and quantized.minimum is not None
        if quantized.block_size != block or not plain or bool(torch.as_tensor(quantized.zero_point).any()):
            expected = f"{block}, with equally spaced levels, a bias for each and columns in order"
            raise ConfigError("block_size", quantized.block_size, expected)
        assert quantized.minimum is not None
        shape, _ = self.stored(quantized.shape)["scales"]
        if tuple(quantized.scale.shape) != shape:
            raise ShapeError("scale", tuple(quantized.scale.shape), f"{shape}, one value per group")
        dtype = torch_dtype(self.scale_dtype)
        words = pack_bits(quantized.codes, self.bits).contiguous().view(torch.uint32)
        fields = {"weight": words, "scales": quantized.scale.to(dtype), "biases": quantized.minimum.to(dtype)}
        return PackedTensor(self, quantized.shape, fields)

    def unpack(self, packed: PackedTensor) -> QuantizedTensor:
        """Codes and parameters, exactly as stored; in bfloat16 they become float32."""
        import torch

        fields = self.checked(packed).fields
        columns = int(packed.shape[1])
        # A row of one word counts as contiguous whatever its stride, and has no view of its bytes then.
        stream = fields["weight"].clone(memory_format=torch.contiguous_format).view(torch.uint8)
        codes = unpack_bits(stream, self.bits, columns)
        scale, bias = (
            part.float() if self.scale_dtype == "bf16" else part
            for part in (fields["scales"], fields["biases"])
        )
        return QuantizedTensor(codes, scale, (1, self.group_size), minimum=bias)
