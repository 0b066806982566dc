"""Weights in floats of 8 bits with a scale for each block: what packers of such formats share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from qformats.errors import ConfigError, Described, NotExactError
from qformats.exact import Answer, represent
from qformats.interfaces.packer import PackedTensor, Packer
from qformats.interfaces.spec import FieldSpec, FormatSpec, KernelSpec
from qformats.numbers import QuantizedTensor, TableGrid, expand_blocks, torch_dtype
from qformats.numbers.float8 import E4M3, Float8Grid

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Float8Packer"]

_POWERS = "f8_e8m0"


class Float8Packer(Packer):
    """A field ``weight`` of E4M3 numbers as they are, and a field of scales, which multiply.

    Parameters
    ----------
    family, variant : str
        The two halves of the name.
    scales : str
        Name of the field of scales.
    block : tuple of int
        Rows and columns that share a scale; 0 for all of them. Blocks at the edges may be short.
    scale_dtype : str
        ``"f32"``, ``"bf16"`` or ``"f16"``; ``"f8_e8m0"`` for powers of two, of which exponents are stored.

    Examples
    --------
    >>> import torch
    >>> from qformats.interfaces import Float8Packer
    >>> packer = Float8Packer("mine", "fp8", "weight_scale", (128, 128))
    >>> packed = packer.encode_reference(torch.linspace(-1, 1, 200).view(2, 100))
    >>> {name: tuple(field.shape) for name, field in packed.fields.items()}
    {'weight': (2, 100), 'weight_scale': (1, 1)}
    """

    grid: Float8Grid | None

    def __init__(
        self, family: str, variant: str, scales: str, block: tuple[int, int], scale_dtype: str = "f32"
    ) -> None:
        self.block, self.scale_dtype, self.scales_field = block, scale_dtype, scales
        powers = scale_dtype == _POWERS
        self.numbers = Float8Grid(
            block_size=block[1],
            block_rows=block[0],
            scale_dtype="f32" if powers else scale_dtype,
            powers=powers,
        )
        self.grid = self.numbers
        across = f"K / {block[1]}" if block[1] else "1"
        down = {0: "1", 1: "N"}.get(block[0], f"N / {block[0]}")
        each = {(0, 0): "tensor", (1, 0): "row"}.get(block, f"{block[0]} x {block[1]}")
        self.spec = FormatSpec(
            family,
            variant,
            f"floats of 8 bits (E4M3), one scale per {each}",
            (
                FieldSpec("weight", ("N", "K"), "f8_e4m3", "multiples of the scale"),
                FieldSpec(scales, (down, across) if block != (0, 0) else ("1",), scale_dtype, "factors"),
            ),
            bits=8,
            block_size=block[1],
            source="OCP 8-bit Floating Point Specification (E4M3)",
            sqnr_floor_db=31.0,
            kernel=KernelSpec(8, "float", block[1], "f16" if scale_dtype == "f16" else "f32"),
        )

    def veto(self, shape: Sequence[int]) -> str | None:
        """Any matrix that is not empty."""
        if len(shape) != 2:
            return f"its number of dimensions is {len(shape)} instead of 2"
        return None if shape[0] and shape[1] else f"it is empty ({shape[0]} x {shape[1]})"

    def row_step(self, shape: Sequence[int]) -> int:
        """Rows of blocks."""
        return self.block[0]

    def row_packer(self, shape: Sequence[int]) -> Packer | None:
        """A scale of its own for each row, if it has one anyway."""
        return self if self.block[0] == 1 else None

    def scales(self, packed: PackedTensor) -> Sequence[Tensor]:
        """The scales; powers of two as float32."""
        scale = packed.fields[self.scales_field]
        return [scale.float() if self.scale_dtype == _POWERS else scale]

    def from_stored(self, fields: Mapping[str, Tensor], shape: tuple[int, int]) -> PackedTensor:
        """Numbers and scales, checked for NaN.

        Raises
        ------
        ConfigError
            If a weight is NaN, or a scale is not finite.
        """
        import torch

        scale = fields[self.scales_field]
        if self.scale_dtype == _POWERS and scale.dtype == torch.uint8:
            scale = scale.contiguous().view(torch.float8_e8m0fnu)
        wanted, _ = self.stored(shape)[self.scales_field]
        if tuple(scale.shape) != wanted:
            scale = scale.reshape(wanted)
        if not bool(scale.float().isfinite().all()):
            bad = int((~scale.float().isfinite()).sum())
            raise ConfigError(
                self.scales_field, Described(f"{bad} values that are NaN or infinite"), "finite scales"
            )
        weight = fields["weight"]
        if bool(((weight.contiguous().view(torch.uint8) & 127) == 127).any()):
            raise ConfigError("weight", Described("codes of NaN"), "finite numbers")
        scale = scale.to(torch_dtype(self.scale_dtype))
        return PackedTensor(self, shape, {"weight": weight, self.scales_field: scale})

    def foresee(self, source: Packer, shape: Sequence[int]) -> tuple[Answer, str]:
        """Whether :meth:`represent` accepts what `source` stores; see :meth:`~qformats.Packer.foresee`."""
        problem = self.veto(shape)
        if problem:
            return Answer.NEVER, problem
        if isinstance(source, Float8Packer):
            wide = {_POWERS: ("bf16", "f32"), "bf16": ("f32",), "f16": ("f32",)}
            known = self.scale_dtype in (source.scale_dtype, *wide.get(source.scale_dtype, ()))
            within = self._within(source, shape)
            if known and within:
                return Answer.ALWAYS, ""
            if not within:
                return Answer.DATA, "a block may span several scales"
            kind = "powers of two" if self.scale_dtype == _POWERS else f"{self.scale_dtype} numbers"
            return Answer.DATA, f"scales in {source.scale_dtype} must be {kind}"
        answer, reason = super().foresee(source, shape)
        if self.block[0] == 1 and not (self.block[1] and shape[1] % self.block[1]):
            return answer, reason
        if answer is Answer.NEVER and "do not divide into blocks" not in reason:
            return answer, reason
        return Answer.DATA, reason or "a block may span several scales"

    def _within(self, source: Float8Packer, shape: Sequence[int]) -> bool:
        """Whether each block lies in one of the other format's."""
        sides = zip(self.block, source.block, shape, strict=True)
        return all(
            (theirs or size) % (mine or size) == 0 or (theirs or size) >= size for mine, theirs, size in sides
        )

    def represent(self, quantized: QuantizedTensor) -> QuantizedTensor:
        """Canonical tensor of the same values; see :meth:`~qformats.Packer.represent`.

        Levels of E4M3 stay as they are; those of other grids may be among them.
        """
        import torch

        problem = self.veto(quantized.shape)
        if problem:
            raise NotExactError(problem)
        rows, columns = quantized.shape
        table = self.numbers.table(quantized.codes)
        known = quantized.codebook is not None and torch.equal(quantized.codebook.float(), table)
        if not (known and quantized.minimum is None):
            width = self.block[1] or columns
            if columns % width:
                raise NotExactError(f"rows of {columns} do not divide into blocks of {width}")
            powers = self.scale_dtype == _POWERS
            own = TableGrid(E4M3, self.block[1], "f32" if powers else self.scale_dtype)
            quantized = represent(quantized, own)
            if self.block[0] == 1 and not powers:
                return quantized
        block = self.numbers.block_of(quantized.codes)
        if quantized.block_size == block and quantized.g_idx is None:
            scale = quantized.scale
        else:
            each = expand_blocks(
                quantized.scale.float(), (rows, columns), quantized.block_size, quantized.g_idx
            )
            height, width = block
            # Padded with the numbers at the edges, so that short blocks are judged by their own.
            padded = torch.nn.functional.pad(
                each[None], (0, -columns % width, 0, -rows % height), mode="replicate"
            )[0]
            parts = padded.view(padded.shape[0] // height, height, padded.shape[1] // width, width)
            low, high = parts.amin((1, 3)), parts.amax((1, 3))
            if bool((low != high).any()):
                raise NotExactError(f"a block of {height} x {width} spans several scales")
            scale = low
        codes = quantized.codes
        if self.scale_dtype == _POWERS:
            codes, scale = _unsigned(codes, scale, quantized.shape, block)
        stored = self.numbers.storable(scale.float())
        if bool((stored != scale).any()):
            found = float(scale.float()[stored != scale][0])
            kind = "power of two" if self.scale_dtype == _POWERS else f"{self.scale_dtype} number"
            raise NotExactError(f"a scale of {found:.7g} is not a {kind}")
        return replace(quantized, codes=codes, scale=stored, block_size=block, g_idx=None)

    def pack(self, quantized: QuantizedTensor) -> PackedTensor:
        """Bytes of codes and scales; both are stored unchanged.

        Raises
        ------
        ConfigError
            If they do not lie on the grid.
        ShapeError
            If the weight is empty.
        """
        self.require(quantized.shape)
        block = self.numbers.block_of(quantized.codes)
        if quantized.block_size != block or quantized.codebook is None or quantized.minimum is not None:
            raise ConfigError("block_size", quantized.block_size, f"{block}, with the levels of E4M3")
        wanted, dtype = self.stored(quantized.shape)[self.scales_field]
        scale = quantized.scale.to(torch_dtype(dtype)).reshape(wanted)
        fields = {"weight": self.numbers.stored(quantized.codes), self.scales_field: scale}
        return PackedTensor(self, quantized.shape, fields)

    def _scale(self, packed: PackedTensor) -> Tensor:
        """Scales as a matrix of blocks; float16 and float32 as they are."""
        scale = self.checked(packed).fields[self.scales_field]
        scale = scale.float() if self.scale_dtype in ("bf16", _POWERS) else scale
        return scale.reshape(1, 1) if self.block == (0, 0) else scale

    def unpack(self, packed: PackedTensor) -> QuantizedTensor:
        """Codes and scales, exactly as stored; the code of -0 becomes that of 0, and bfloat16 scales float32."""
        scale = self._scale(packed)
        codes = self.numbers.places(packed.fields["weight"])
        return QuantizedTensor(codes, scale, self.numbers.block_of(codes), codebook=self.numbers.table(codes))

    def dequantize(self, packed: PackedTensor) -> Tensor:
        """Values as float32, without a look at the table."""
        import torch

        scale = self._scale(packed).float()
        weight = packed.fields["weight"]
        if bool(((weight.contiguous().view(torch.uint8) & 127) == 127).any()):
            raise ConfigError("weight", Described("codes of NaN"), "finite numbers")
        shape = (int(packed.shape[0]), int(packed.shape[1]))
        return weight.float().mul_(expand_blocks(scale, shape, self.numbers.block_of(weight)))


def _unsigned(
    codes: Tensor, scale: Tensor, shape: tuple[int, int], block: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Codes and scales of the same values without what exponents cannot say: signs, and 0, which becomes 1."""
    import torch

    if bool((scale > 0).all()):
        return codes, scale
    zero = len(E4M3) // 2
    turned = expand_blocks(scale < 0, shape, block)
    empty = expand_blocks(scale == 0, shape, block)
    codes = torch.where(turned, 2 * zero - codes, codes)
    codes = torch.where(empty, torch.full_like(codes, zero), codes)
    return codes, torch.where(scale == 0, torch.ones_like(scale), scale.abs())
