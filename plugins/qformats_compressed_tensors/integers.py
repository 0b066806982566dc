"""Packers of integers: ``pack-quantized``, streams of bits along the columns, and ``int-quantized``, a byte each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from qformats import FieldSpec, FormatSpec, KernelSpec, PackedTensor, Packer, QuantizedTensor
from qformats.errors import ConfigError, Described, ShapeError
from qformats.numbers import pack_bits, packed_bytes, torch_dtype, unpack_bits
from qformats_compressed_tensors.grid import IntegerGrid
from qformats_compressed_tensors.scheme import Declared

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BITS", "FAMILY", "BytePacker", "IntegerPacker", "OrderedPacker", "PackedPacker", "older_words"]

FAMILY = "compressed-tensors"
BITS = (2, 3, 4, 5, 6, 8)
"""Code widths."""
_SQNR_DB = {(4, True): 19.0, (4, False): 19.7, (8, True): 43.7, (8, False): 44.3}
"""Signal-to-noise ratio that groups of 128 reach, by width and symmetry."""


def older_words(columns: int, bits: int) -> int:
    """Words of a row before June 2026: as many whole codes in each as fit, and the rest of its bits 0."""
    return -(-columns // (32 // bits))


class IntegerPacker(Packer):
    """What both layouts have in common.

    Parameters
    ----------
    bits : int
        Width of a code.
    group_size : int
        Columns of a group; 0 for the whole row.
    symmetric : bool
        Whether the code of 0 is 0 everywhere.
    scale_dtype : str
        ``"f16"``, ``"bf16"`` or ``"f32"``.
    """

    grid: IntegerGrid | None
    layout = ""
    """What ``format`` of a configuration calls it."""
    declared = Declared()
    """What the folder declares that the packer stands for."""
    _source = ""

    def __init__(self, bits: int, group_size: int, symmetric: bool = True, scale_dtype: str = "f16") -> None:
        self.bits, self.group_size = bits, group_size
        self.symmetric, self.scale_dtype = symmetric, scale_dtype
        kind = "symmetric" if symmetric else "zero_point"
        self.grid = IntegerGrid(bits, group_size, kind, scale_dtype)
        each = f"{group_size} columns" if group_size else "row"
        what = "one scale" if symmetric else "one scale and zero point"
        self.spec = FormatSpec(
            FAMILY,
            self._variant(),
            f"{bits} bits, {what} per {each} ({self.layout})",
            self._fields(f"K / {group_size}" if group_size else "1"),
            bits=bits,
            block_size=group_size,
            source=f"compressed-tensors:src/compressed_tensors/compressors/{self._source}",
            sqnr_floor_db=_SQNR_DB.get((bits, symmetric)) if group_size == 128 else None,
            kernel=KernelSpec(bits, "affine", group_size, "f16" if scale_dtype == "f16" else "f32"),
        )

    def _fields(self, groups: str) -> tuple[FieldSpec, ...]:
        raise NotImplementedError

    def _variant(self) -> str:
        raise NotImplementedError

    @property
    def middle(self) -> int:
        """Code that stands for the signed code 0."""
        return 1 << (self.bits - 1)

    def veto(self, shape: Sequence[int]) -> str | None:
        """Whole groups in each row."""
        if len(shape) != 2:
            return f"its number of dimensions is {len(shape)} instead of 2"
        rows, columns = shape
        if not rows or not columns:
            return f"it is empty ({rows} x {columns})"
        if self.group_size and columns % self.group_size:
            return f"rows of {columns} do not divide into groups of {self.group_size}"
        return None

    def _groups(self, shape: Sequence[int]) -> int:
        return int(shape[1]) // self.group_size if self.group_size else 1

    def _scale(self, fields: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        """Scales as stored, checked; a single one is repeated for each row."""
        scale = fields["weight_scale"]
        if not bool(scale.isfinite().all()):
            bad = int((~scale.isfinite()).sum())
            raise ConfigError(
                "weight_scale", Described(f"{bad} values that are NaN or infinite"), "finite scales"
            )
        return scale.reshape(1, 1).expand(shape[0], 1).contiguous() if scale.numel() == 1 else scale

    def _checked(self, quantized: QuantizedTensor) -> None:
        """Refuse what this format does not hold."""
        self.require(quantized.shape)
        block = (1, self.group_size or quantized.shape[1])
        if (
            quantized.block_size != block
            or quantized.codebook is not None
            or quantized.minimum is not None
            or quantized.g_idx is not None
        ):
            expected = f"{block}, with equally spaced levels and columns in order"
            raise ConfigError("block_size", quantized.block_size, expected)
        shape = (quantized.shape[0], self._groups(quantized.shape))
        if tuple(quantized.scale.shape) != shape:
            raise ShapeError("scale", tuple(quantized.scale.shape), f"{shape}, one value per group")

    def _zero(self, quantized: QuantizedTensor) -> Tensor:
        """Zero points as codes, ``(N, groups)``."""
        import torch

        zero = torch.as_tensor(quantized.zero_point, device=quantized.codes.device)
        if self.symmetric and bool((zero != self.middle).any()):
            raise ConfigError("zero_point", quantized.zero_point, f"{self.middle} everywhere")
        if zero.is_floating_point() and bool((zero != zero.round()).any()):
            raise ConfigError("zero_point", Described("fractions"), "whole numbers")
        return zero.to(torch.int32).expand(quantized.scale.shape)

    def _canonical(self, codes: Tensor, scale: Tensor, zero: Tensor | int) -> QuantizedTensor:
        scale = scale.float() if self.scale_dtype == "bf16" else scale
        block = (1, self.group_size or int(codes.shape[1]))
        return QuantizedTensor(codes, scale, block, zero_point=zero)


class PackedPacker(IntegerPacker):
    """``pack-quantized``: rows are streams of codes in words of 32 bits; zero points are streams along the outputs.

    Examples
    --------
    >>> import torch
    >>> from qformats_compressed_tensors.integers import PackedPacker
    >>> packed = PackedPacker(4, 32).encode_reference(torch.linspace(-1, 1, 64).view(2, 32))
    >>> {name: tuple(field.shape) for name, field in packed.fields.items()}
    {'weight_packed': (2, 4), 'weight_scale': (2, 1), 'weight_shape': (2,)}
    """

    layout = "pack-quantized"
    _source = "pack_quantized/base.py"

    def _variant(self) -> str:
        return f"w{self.bits}a16-{named(self.group_size, self.symmetric, self.scale_dtype)}"

    def _fields(self, groups: str) -> tuple[FieldSpec, ...]:
        fields = (
            FieldSpec("weight_packed", ("N", f"K * {self.bits} / 32"), "i32", "packed codes"),
            FieldSpec("weight_scale", ("N", groups), self.scale_dtype, "weight units per step"),
            FieldSpec("weight_shape", ("2",), "i64", "N and K"),
        )
        if self.symmetric:
            return fields
        zero = FieldSpec("weight_zero_point", (f"N * {self.bits} / 32", groups), "i32", "packed zero points")
        return (*fields, zero)

    def row_step(self, shape: Sequence[int]) -> int:
        """Each row, or as many as fill words of zero points."""
        return 1 if self.symmetric else 32 // math.gcd(32, self.bits)

    def row_packer(self, shape: Sequence[int]) -> Packer | None:
        """The format itself: groups lie within rows."""
        return self

    def fixed(self, shape: Sequence[int], dtype: str) -> dict[str, Tensor]:
        """The shape of the weight."""
        import torch

        return {"weight_shape": torch.tensor([int(shape[0]), int(shape[1])], dtype=torch.int64)}

    def from_stored(self, fields: Mapping[str, Tensor], shape: tuple[int, int]) -> PackedTensor:
        """Words as they are now written, also of files that were written before, and a scale for each row."""
        packed = fields["weight_packed"]
        now, before = self.stored(shape)["weight_packed"][0][1], older_words(shape[1], self.bits)
        older = packed.shape[1] != now and packed.shape[1] == before
        if older:
            packed = _stream(_older(packed, self.bits, shape[1]), self.bits)
        kept = {"weight_packed": packed, "weight_scale": self._scale(fields, shape)}
        kept |= self.fixed(shape, "f32")
        if not self.symmetric:
            zero = fields["weight_zero_point"]
            if older:
                zero = _stream(_older(zero.t(), self.bits, shape[0]), self.bits).t().contiguous()
            kept["weight_zero_point"] = zero
        return PackedTensor(self, shape, kept)

    def pack(self, quantized: QuantizedTensor) -> PackedTensor:
        """Bytes of codes and parameters; all are stored unchanged.

        Raises
        ------
        ConfigError
            If groups are not those of this format, or a number has no code.
        ShapeError
            If rows do not divide into groups.
        """
        self._checked(quantized)
        zero = self._zero(quantized)
        fields = {
            "weight_packed": _stream(quantized.codes, self.bits),
            "weight_scale": quantized.scale.to(torch_dtype(self.scale_dtype)),
            **self.fixed(quantized.shape, "f32"),
        }
        if not self.symmetric:
            fields["weight_zero_point"] = _stream(zero.t(), self.bits).t().contiguous()
        return PackedTensor(self, quantized.shape, fields)

    def unpack(self, packed: PackedTensor) -> QuantizedTensor:
        """Codes and parameters, exactly as stored; bfloat16 scales become float32."""
        fields = self.checked(packed).fields
        rows, columns = int(packed.shape[0]), int(packed.shape[1])
        codes = _codes(fields["weight_packed"], self.bits, columns)
        zero: Tensor | int = self.middle
        if not self.symmetric:
            zero = _codes(fields["weight_zero_point"].t(), self.bits, rows).t().contiguous()
        return self._canonical(codes, fields["weight_scale"], zero)


class OrderedPacker(PackedPacker):
    """``pack-quantized`` with ``weight_g_idx``: columns belong to groups in any order; read only."""

    def __init__(self, bits: int, group_size: int, symmetric: bool = True, scale_dtype: str = "f16") -> None:
        super().__init__(bits, group_size, symmetric, scale_dtype)
        self.grid = None
        order = FieldSpec("weight_g_idx", ("K",), "i32", "group of each column")
        self.spec = replace(
            self.spec,
            fields=(*self.spec.fields, order),
            summary=f"{self.spec.summary}, columns reordered",
            sqnr_floor_db=None,
        )

    def _variant(self) -> str:
        return f"{super()._variant()}-actorder"

    def row_step(self, shape: Sequence[int]) -> int:
        """Only the whole tensor: the order of columns is that of all rows."""
        return 0

    def row_packer(self, shape: Sequence[int]) -> Packer | None:
        """The format itself, whose rows :meth:`pack` puts in place."""
        return self

    def from_stored(self, fields: Mapping[str, Tensor], shape: tuple[int, int]) -> PackedTensor:
        """The same, with the order."""
        import torch

        order = fields["weight_g_idx"].to(torch.int32)
        groups = self._groups(shape)
        if order.numel() and (int(order.min()) < 0 or int(order.max()) >= groups):
            found = Described(f"groups {int(order.min())} to {int(order.max())}")
            raise ConfigError("weight_g_idx", found, f"0 to {groups - 1}, one for each column of scales")
        kept = super().from_stored(fields, shape)
        return replace(kept, fields={**kept.fields, "weight_g_idx": order})

    def pack(self, quantized: QuantizedTensor) -> PackedTensor:
        """Bytes of rows in another order; weights are not written in this format."""
        if quantized.g_idx is None:
            raise ConfigError("g_idx", Described("columns in order"), "an order of columns")
        import torch

        kept = super().pack(replace(quantized, g_idx=None))
        return replace(kept, fields={**kept.fields, "weight_g_idx": quantized.g_idx.to(torch.int32)})

    def unpack(self, packed: PackedTensor) -> QuantizedTensor:
        """Codes, parameters and order, exactly as stored."""
        return replace(super().unpack(packed), g_idx=packed.fields["weight_g_idx"])


class BytePacker(IntegerPacker):
    """``int-quantized``: a signed byte for each code, as W8A8 models have it; only weights are quantized here."""

    layout = "int-quantized"
    _source = "naive_quantized/base.py"

    def __init__(self, group_size: int, symmetric: bool = True, scale_dtype: str = "f16") -> None:
        super().__init__(8, group_size, symmetric, scale_dtype)

    def _variant(self) -> str:
        return f"w8a8-{named(self.group_size, self.symmetric, self.scale_dtype)}"

    def _fields(self, groups: str) -> tuple[FieldSpec, ...]:
        fields = (
            FieldSpec("weight", ("N", "K"), "i8", "codes"),
            FieldSpec("weight_scale", ("N", groups), self.scale_dtype, "weight units per step"),
        )
        zero = FieldSpec("weight_zero_point", ("N", groups), "i8", "zero points")
        return fields if self.symmetric else (*fields, zero)

    def from_stored(self, fields: Mapping[str, Tensor], shape: tuple[int, int]) -> PackedTensor:
        """A scale and zero point for each row, where there is only one."""
        kept = {"weight": fields["weight"], "weight_scale": self._scale(fields, shape)}
        if not self.symmetric:
            zero = fields["weight_zero_point"]
            kept["weight_zero_point"] = (
                zero.reshape(1, 1).expand(shape[0], 1).contiguous() if zero.numel() == 1 else zero
            )
        return PackedTensor(self, shape, kept)

    def pack(self, quantized: QuantizedTensor) -> PackedTensor:
        """Bytes of codes and parameters; all are stored unchanged.

        Raises
        ------
        ConfigError
            If groups are not those of this format, or a number has no code.
        ShapeError
            If rows do not divide into groups.
        """
        self._checked(quantized)
        fields = {
            "weight": _signed(quantized.codes, "codes"),
            "weight_scale": quantized.scale.to(torch_dtype(self.scale_dtype)),
        }
        zero = self._zero(quantized)
        if not self.symmetric:
            fields["weight_zero_point"] = _signed(zero, "zero_point")
        return PackedTensor(self, quantized.shape, fields)

    def unpack(self, packed: PackedTensor) -> QuantizedTensor:
        """Codes and parameters, exactly as stored; bfloat16 scales become float32."""
        fields = self.checked(packed).fields
        zero = self.middle if self.symmetric else _unsigned(fields["weight_zero_point"])
        return self._canonical(_unsigned(fields["weight"]), fields["weight_scale"], zero)


def named(group_size: int, symmetric: bool, scale_dtype: str) -> str:
    """End of a variant's name."""
    parts = [f"{group_size}g" if group_size else "channel"]
    return "-".join([*parts, *["asym"] * (not symmetric), *[scale_dtype] * (scale_dtype != "f16")])


def _signed(codes: Tensor, what: str) -> Tensor:
    import torch

    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) > 255):
        raise ConfigError(what, f"[{int(codes.min())}, {int(codes.max())}]", "[0, 255]")
    return (codes.to(torch.uint8) ^ 128).view(torch.int8)


def _unsigned(stored: Tensor) -> Tensor:
    import torch

    return stored.contiguous().view(torch.uint8) ^ 128


def _stream(codes: Tensor, bits: int) -> Tensor:
    """Words of rows of codes: int32, ``(R, ceil(C * bits / 32))``."""
    import torch

    stream = pack_bits(codes, bits)
    if stream.shape[1] % 4:
        stream = torch.nn.functional.pad(stream, (0, -stream.shape[1] % 4))
    return stream.contiguous().view(torch.int32)


def _codes(words: Tensor, bits: int, count: int) -> Tensor:
    """Codes of rows of words: uint8, ``(R, count)``."""
    import torch

    # A row of one word with a gap behind it counts as contiguous, and still has no view of its bytes.
    whole = words.is_contiguous() and words.stride(-1) == 1
    stream = (words if whole else words.clone(memory_format=torch.contiguous_format)).view(torch.uint8)
    return unpack_bits(stream[:, : packed_bytes(count, bits)], bits, count)


def _older(words: Tensor, bits: int, count: int) -> Tensor:
    """Codes of rows of words that hold whole codes only, ``(R, count)``."""
    import torch

    each = 32 // bits
    shifts = torch.arange(each, dtype=torch.int32, device=words.device) * bits
    codes = (words.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return codes.flatten(1)[:, :count].to(torch.uint8)
