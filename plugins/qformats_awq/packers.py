"""The packers of ``awq``: gemm, which is written and to which gemv is converted, and gemv_fast, which is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qformats import AffineGrid, FieldSpec, FormatSpec, KernelSpec, PackedTensor, Packer, QuantizedTensor
from qformats.errors import ConfigError, Described, ShapeError
from qformats.numbers import torch_dtype
from qformats_awq import layouts

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FAMILY", "AWQPacker", "FastPacker", "suffix"]

FAMILY = "awq"
_BITS = 4
_SQNR_DB = 19.7
"""Signal-to-noise ratio that groups of 128 reach; GPTQ's asymmetric grid of 4 bits is the same."""


class _Groups(Packer):
    """What both have in common: groups of columns, and outputs of which several share a word."""

    group_size: int
    declared_group: int | None = None
    """Columns of a group that a folder declares; 0 for the whole row."""
    outputs = 8
    """Outputs that share a word."""

    def veto(self, shape: Sequence[int]) -> str | None:
        """Whole words of outputs, and whole groups of columns."""
        if len(shape) != 2:
            return f"its number of dimensions is {len(shape)} instead of 2"
        rows, columns = shape
        if not rows or rows % self.outputs:
            return f"{rows} outputs are not a multiple of {self.outputs}"
        if not columns or (self.group_size and columns % self.group_size):
            return f"rows of {columns} do not divide into groups of {self.group_size or columns}"
        return None

    def row_step(self, shape: Sequence[int]) -> int:
        """Only the whole tensor: rows lie along the second dimension."""
        return 0

    def _groups(self, shape: Sequence[int]) -> int:
        return int(shape[1]) // self.group_size if self.group_size else 1


class AWQPacker(_Groups):
    """Codes of 8 outputs in a word, in AutoAWQ's order; a float16 scale and a zero point for each group of columns.

    Parameters
    ----------
    group_size : int
        Columns of a group; 0 for the whole row.
    scale_dtype : str
        ``"f16"``, or ``"bf16"`` and ``"f32"`` as some files have it.

    Examples
    --------
    >>> import torch
    >>> from qformats_awq.packers import AWQPacker
    >>> packed = AWQPacker(32).encode_reference(torch.linspace(-1, 1, 256).view(8, 32))
    >>> {name: tuple(field.shape) for name, field in packed.fields.items()}
    {'qweight': (32, 1), 'qzeros': (1, 1), 'scales': (1, 8)}
    """

    grid: AffineGrid
    turned = False
    """Whether a folder stores the layout of gemv, which a square weight's words do not tell."""

    def __init__(self, group_size: int, scale_dtype: str = "f16") -> None:
        self.group_size, self.scale_dtype = group_size, scale_dtype
        self.grid = AffineGrid(_BITS, group_size, "zero_point", scale_dtype)
        groups = f"K / {group_size}" if group_size else "1"
        each = f"{group_size} columns" if group_size else "row"
        self.spec = FormatSpec(
            FAMILY,
            f"4bit-{group_size or -1}g{suffix(scale_dtype)}",
            f"4 bits, one scale and zero point per {each}, as AutoAWQ stores them (gemm)",
            (
                FieldSpec("qweight", ("K", "N / 8"), "i32", "packed codes"),
                FieldSpec("qzeros", (groups, "N / 8"), "i32", "packed zero points"),
                FieldSpec("scales", (groups, "N"), scale_dtype, "weight units per step"),
            ),
            bits=_BITS,
            block_size=group_size,
            source="AutoAWQ:awq/modules/linear/gemm.py",
            sqnr_floor_db=_SQNR_DB if group_size == 128 else None,
            kernel=KernelSpec(_BITS, "affine", group_size, "f16" if scale_dtype == "f16" else "f32"),
        )

    def row_packer(self, shape: Sequence[int]) -> Packer | None:
        """The format itself: groups lie within rows."""
        return self

    def from_stored(self, fields: Mapping[str, Tensor], shape: tuple[int, int]) -> PackedTensor:
        """Fields of gemm as they are; those of gemv in gemm's order."""
        kept = {name: fields[name] for name in ("qweight", "qzeros", "scales")}
        groups = self._groups(shape)
        if self.turned:
            scales = kept["scales"][:, :groups]
            zeros = layouts.plain(kept["qzeros"])[:, :groups]
            kept = {
                "qweight": layouts.interleave(layouts.plain(kept["qweight"])),
                "qzeros": layouts.interleave(zeros),
                "scales": scales.t().contiguous(),
            }
        if not bool(kept["scales"].isfinite().all()):
            bad = int((~kept["scales"].isfinite()).sum())
            raise ConfigError("scales", Described(f"{bad} values that are NaN or infinite"), "finite scales")
        return PackedTensor(self, shape, kept)

    def pack(self, quantized: QuantizedTensor) -> PackedTensor:
        """Bytes of codes and parameters; all are stored unchanged.

        Raises
        ------
        ConfigError
            If groups are not those of this format, or a number has no code.
        ShapeError
            If the weight does not divide into whole words and groups.
        """
        import torch

        shape = quantized.shape
        self.require(shape)
        block = self.grid.block_of(quantized.codes)
        if (
            quantized.block_size != block
            or quantized.codebook is not None
            or quantized.minimum is not None
            or quantized.g_idx is not None
        ):
            expected = f"{block}, with equally spaced levels and columns in order"
            raise ConfigError("block_size", quantized.block_size, expected)
        grid_shape = (shape[0], self._groups(shape))
        if tuple(quantized.scale.shape) != grid_shape:
            raise ShapeError("scale", tuple(quantized.scale.shape), f"{grid_shape}, one value per group")
        zero = torch.as_tensor(quantized.zero_point, device=quantized.codes.device)
        if zero.is_floating_point() and bool((zero != zero.round()).any()):
            raise ConfigError("zero_point", Described("fractions"), "whole numbers from 0 to 15")
        fields = {
            "qweight": layouts.interleave(quantized.codes),
            "qzeros": layouts.interleave(zero.to(torch.int32).expand(grid_shape)),
            "scales": quantized.scale.to(torch_dtype(self.scale_dtype)).t().contiguous(),
        }
        return PackedTensor(self, shape, fields)

    def unpack(self, packed: PackedTensor) -> QuantizedTensor:
        """Codes and parameters, exactly as stored; bfloat16 scales become float32."""
        fields = self.checked(packed).fields
        codes = layouts.separate(fields["qweight"])
        scale = fields["scales"].float() if self.scale_dtype == "bf16" else fields["scales"]
        zero = layouts.separate(fields["qzeros"])
        return QuantizedTensor(codes, scale.t().contiguous(), self.grid.block_of(codes), zero_point=zero)


class FastPacker(_Groups):
    """gemv_fast and llm-awq: ``scale * code + offset``, the offset a float; read only.

    Parameters
    ----------
    group_size : int
        Columns of a group: 32, 64, or 128 and more.
    scale_dtype : str
        ``"f16"``, or ``"bf16"`` as llm-awq also stores it.
    """

    outputs = 4

    def __init__(self, group_size: int, scale_dtype: str = "f16") -> None:
        self.group_size, self.scale_dtype = group_size, scale_dtype
        unit = layouts.padded_groups(group_size, group_size)
        padded = f"K // {group_size} / {unit} * {unit}"
        self.spec = FormatSpec(
            FAMILY,
            f"4bit-{group_size}g-gemv_fast{suffix(scale_dtype)}",
            f"4 bits, a scale and a float offset per {group_size} columns (gemv_fast, llm-awq)",
            (
                FieldSpec("qweight", ("N / 4", "K"), "i16", "packed codes"),
                FieldSpec("scales", (padded, "N"), scale_dtype, "weight units per step"),
                FieldSpec("qzeros", (padded, "N"), scale_dtype, "weight units of code 0"),
            ),
            bits=_BITS,
            block_size=group_size,
            source="AutoAWQ:awq/modules/linear/gemv_fast.py",
            kernel=KernelSpec(_BITS, "minimum", group_size, "f16" if scale_dtype == "f16" else "f32"),
        )

    def veto(self, shape: Sequence[int]) -> str | None:
        """Whole groups, and whole runs of 64 columns."""
        problem = super().veto(shape)
        return problem or (f"{shape[1]} columns are not a multiple of 64" if shape[1] % 64 else None)

    def from_stored(self, fields: Mapping[str, Tensor], shape: tuple[int, int]) -> PackedTensor:
        """Offsets under AutoAWQ's name; llm-awq calls them ``scaled_zeros``."""
        kept = {"qweight": fields["qweight"], "scales": fields["scales"]}
        kept["qzeros"] = fields["qzeros"] if "qzeros" in fields else fields["scaled_zeros"]
        for name in ("scales", "qzeros"):
            if not bool(kept[name].isfinite().all()):
                bad = int((~kept[name].isfinite()).sum())
                raise ConfigError(name, Described(f"{bad} values that are NaN or infinite"), "finite numbers")
        return PackedTensor(self, shape, kept)

    def row_packer(self, shape: Sequence[int]) -> Packer | None:
        """The format itself, whose rows :meth:`pack` puts in place."""
        return self

    def pack(self, quantized: QuantizedTensor) -> PackedTensor:
        """Bytes of rows in another order; weights are not written in this format."""
        import torch

        self.require(quantized.shape)
        if quantized.block_size != (1, self.group_size) or quantized.minimum is None:
            expected = f"{(1, self.group_size)}, with an offset for each"
            raise ConfigError("block_size", quantized.block_size, expected)
        fields = {"qweight": layouts.to_fast(quantized.codes)}
        for name, values in (("scales", quantized.scale), ("qzeros", quantized.minimum)):
            short = self.stored(quantized.shape)[name][0][0] - values.shape[1]
            padded = torch.nn.functional.pad(values.t(), (0, 0, 0, short))
            fields[name] = padded.to(torch_dtype(self.scale_dtype)).contiguous()
        return PackedTensor(self, quantized.shape, fields)

    def scales(self, packed: PackedTensor) -> Sequence[Tensor]:
        """Scales and offsets of groups, without the padding."""
        groups = self._groups(packed.shape)
        return [packed.fields[name][:groups] for name in ("scales", "qzeros")]

    def unpack(self, packed: PackedTensor) -> QuantizedTensor:
        """Codes, scales and offsets, exactly as stored; in bfloat16 they become float32."""
        fields = self.checked(packed).fields
        codes = layouts.from_fast(fields["qweight"])
        scale, minimum = (
            (part.float() if self.scale_dtype == "bf16" else part).t().contiguous()
            for part in self.scales(packed)
        )
        return QuantizedTensor(codes, scale, (1, self.group_size), minimum=minimum)


def suffix(scale_dtype: str) -> str:
    """What the name of a variant ends with if its scales are not float16."""
    return "" if scale_dtype == "f16" else f"-{scale_dtype}"
