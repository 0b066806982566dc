"""The packers of ``glm``: a byte or half a byte per weight, two's complement, and one scale per row.

Stored beside a module: ``weight``, int8 ``(N, K * bits / 8)``, and ``weight_scale``, ``(N,)``. Of a byte with two
codes the high nibble is the even column. Variants:

``int8``, ``int4``
    Scales in float16, as GLM-130B, SwissArmyTransformer and ChatGLM-6B write them.
``int8-bf16``, ``int4-bf16``
    As the code of GLM-4 writes them from a bfloat16 model.
``int8-f32``, ``int4-f32``
    As ChatGLM-6B writes them on a CPU.
``int4-tp2``, ``int8-bf16-tp8``, ...
    `p` scales per row, ``weight_scale`` ``(N, p)``, each for ``K / p`` columns: what row-parallel shards with scales of
    their own are as one tensor. No program reads it; it is readable here, and another format may hold it exactly.

Codes are int8 on disk and unsigned in canonical form (zero point 8 or 128). Codes -8 and -128 are legal; upstream
writes them only by an overflow, see :func:`overflowed_rows`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qformats import FieldSpec, FormatSpec, KernelSpec, PackedTensor, Packer, QuantizedTensor
from qformats.errors import ConfigError, Described, NotExactError
from qformats.interfaces import represent
from qformats.numbers import empty, torch_dtype
from qformats_glm.grid import RowGrid

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FAMILY", "SCALES", "GLMPacker", "overflowed_rows"]

FAMILY = "glm"
SCALES = ("f16", "bf16", "f32")
"""dtypes of scales; float16 goes without saying in the name of a format."""
_SQNR_DB = {8: 40.5, 4: 15.5}
_NAMES = {"f16": "float16", "bf16": "bfloat16", "f32": "float32"}
SOURCE = "GLM-130B:quantization/layers.py"


class GLMPacker(Packer):
    """Two's complement codes, and one scale per row.

    Parameters
    ----------
    bits : int
        4 or 8.
    scale_dtype : str
        ``"f16"``, ``"bf16"`` or ``"f32"``.
    parts : int
        Scales per row; more than one only for reading.
    """

    grid: RowGrid | None
    on_device = True

    def __init__(self, bits: int, scale_dtype: str = "f16", parts: int = 1) -> None:
        self.bits, self.scale_dtype, self.parts = bits, scale_dtype, parts
        variant = f"int{bits}" + ("" if scale_dtype == "f16" else f"-{scale_dtype}")
        summary = f"{bits} bits, one {_NAMES[scale_dtype]} scale per row"
        shape: tuple[str, ...] = ("N",)
        self.grid = RowGrid(bits, scale_dtype=scale_dtype)
        if parts > 1:
            variant, shape, self.grid = f"{variant}-tp{parts}", ("N", str(parts)), None
            summary = f"{bits} bits, {parts} {_NAMES[scale_dtype]} scales per row; read-only"
        self.spec = FormatSpec(
            FAMILY,
            variant,
            summary,
            (
                FieldSpec("weight", ("N", f"K / {8 // bits}" if bits < 8 else "K"), "i8", "packed codes"),
                FieldSpec("weight_scale", shape, scale_dtype, "weight units per step"),
            ),
            bits=bits,
            block_size=0,
            source=SOURCE,
            sqnr_floor_db=_SQNR_DB[bits] if parts == 1 else None,
            kernel=None
            if parts > 1
            else KernelSpec(bits, "affine", 0, "f16" if scale_dtype == "f16" else "f32"),
        )

    def with_parts(self, parts: int) -> GLMPacker:
        """Packer of the same width and dtype of scale with `parts` scales per row."""
        return GLMPacker(self.bits, self.scale_dtype, parts)

    def veto(self, shape: Sequence[int]) -> str | None:
        """Rows are whole bytes, and divide into as many blocks of whole bytes as there are scales."""
        if len(shape) != 2:
            return f"its number of dimensions is {len(shape)} instead of 2"
        columns = int(shape[1])
        if not columns:
            return "it has no columns"
        if columns % self.parts:
            return f"{columns} columns do not divide into {self.parts} equal parts"
        if columns // self.parts * self.bits % 8:
            part = "" if self.parts == 1 else f" in each of {self.parts} parts"
            return f"{columns // self.parts} columns{part} are an odd number, but a byte holds two"
        return None

    def weight_shape(self, stored: Mapping[str, tuple[tuple[int, ...], str]]) -> tuple[int, int]:
        """Shape of the weight; see :meth:`qformats.Packer.weight_shape`."""
        shape = super().weight_shape(stored)
        problem = self.veto(shape)
        if problem:
            raise ConfigError(
                "weight", Described(f"shape {stored['weight'][0]}"), f"rows of {self.name} ({problem})"
            )
        return shape

    def from_stored(self, fields: Mapping[str, Tensor], shape: tuple[int, int]) -> PackedTensor:
        """Packed tensor of fields as stored in a file; scales are checked."""
        if not bool(fields["weight_scale"].isfinite().all()):
            raise ConfigError("weight_scale", Described("infinity or NaN"), "finite scales")
        return PackedTensor(self, shape, fields)

    def fields(self, packed: PackedTensor) -> tuple[Tensor, Tensor]:
        """Bytes and scales of a packed tensor, checked.

        Raises
        ------
        ShapeError
            If they are not those of a tensor of that shape.
        """
        self.checked(packed)
        return packed.fields["weight"], packed.fields["weight_scale"]

    def represent(self, quantized: QuantizedTensor) -> QuantizedTensor:
        """Canonical tensor of the same values; see :meth:`qformats.Packer.represent`."""
        if self.grid is not None:
            return super().represent(quantized)
        problem = self.veto(quantized.shape)
        if problem:
            raise NotExactError(problem)
        block = quantized.shape[1] // self.parts
        return represent(quantized, RowGrid(self.bits, block, scale_dtype=self.scale_dtype))

    def pack(self, quantized: QuantizedTensor) -> PackedTensor:
        """Bytes of codes and scales; both are stored unchanged.

        Raises
        ------
        ConfigError
            If blocks are not those of this format, or the zero point is not the middle code.
        """
        import torch

        rows, columns = quantized.shape
        self.require(quantized.shape)
        block = (1, columns // self.parts)
        if quantized.block_size != block or quantized.codebook is not None or quantized.minimum is not None:
            raise ConfigError("block_size", quantized.block_size, f"{block}, with equally spaced levels")
        if quantized.zero_point != 1 << (self.bits - 1):
            raise ConfigError("zero_point", quantized.zero_point, str(1 << (self.bits - 1)))
        codes = quantized.codes.to(torch.uint8).contiguous()
        if self.bits == 8:
            packed = (codes ^ 0x80).view(torch.int8)
        elif codes.device.type == "cpu":
            from qformats_glm import kernels

            packed = empty((rows, columns // 2), torch.int8)
            kernels.pack(codes.numpy(), packed.numpy())
        else:
            nibbles = (codes ^ 8).view(rows, columns // 2, 2)
            packed = (nibbles[..., 0] << 4 | nibbles[..., 1] & 15).view(torch.int8)
        scale = quantized.scale.to(torch_dtype(self.scale_dtype))
        scale = scale.reshape(rows) if self.parts == 1 else scale
        return PackedTensor(self, (rows, columns), {"weight": packed, "weight_scale": scale})

    def unpack(self, packed: PackedTensor) -> QuantizedTensor:
        """Codes and scales, exactly as stored; bfloat16 scales become float32."""
        import torch

        weight, scale = self.fields(packed)
        rows, columns = int(packed.shape[0]), int(packed.shape[1])
        if self.bits == 8:
            codes = weight.view(torch.uint8) ^ 0x80
        elif weight.device.type == "cpu":
            from qformats_glm import kernels

            codes = empty((rows, columns), torch.uint8)
            kernels.unpack(weight.contiguous().numpy(), codes.numpy())
        else:
            nibbles = weight.view(torch.uint8)
            codes = torch.stack([nibbles >> 4, nibbles & 15], -1).view(rows, columns) ^ 8
        scale = scale.float() if self.scale_dtype == "bf16" else scale
        block = (1, columns // self.parts)
        return QuantizedTensor(codes, scale.reshape(rows, self.parts), block, zero_point=1 << (self.bits - 1))

    def dequantize(self, packed: PackedTensor) -> Tensor:
        """Values as float32, by the compiled kernel on a CPU."""
        import torch

        if self.fields(packed)[0].device.type != "cpu":
            return self.unpack(packed).dequantize()
        out = empty(packed.shape, torch.float32)
        self.dequantize_into(packed, out)
        return out

    def dequantize_into(self, packed: PackedTensor, out: Tensor) -> None:
        """Values in memory that is there already, by the compiled kernel on a CPU."""
        weight, scale = self.fields(packed)
        if weight.device.type != "cpu":
            super().dequantize_into(packed, out)
            return
        from qformats.kernels.dense import as_numpy
        from qformats_glm import kernels

        rows, columns = int(packed.shape[0]), int(packed.shape[1])
        # Several scales per row are as many shorter rows.
        short = (rows * self.parts, columns // self.parts)
        kernels.dequantize(
            self.bits,
            weight.contiguous().view(short[0], short[1] * self.bits // 8).numpy(),
            scale.float().contiguous().view(-1).numpy(),
            as_numpy(out.view(short)),
        )

    def encode_reference(self, dense: Tensor) -> PackedTensor:
        """Upstream's rule, from floats to packed bytes in one pass.

        Raises
        ------
        NonFiniteError
            If a weight is not finite, or so large that its row's scale is beyond the stored dtype.
        ShapeError
            If rows are not whole bytes.
        """
        import torch

        self.require(dense.shape)
        known = (torch.float32, torch.float16, torch.bfloat16)
        if self.grid is None or dense.device.type != "cpu" or dense.dtype not in known:
            return super().encode_reference(dense)
        from qformats.kernels.dense import as_numpy, refuse
        from qformats_glm import kernels

        weight = dense.detach().contiguous()
        rows = int(weight.shape[0])
        packed = empty((rows, weight.shape[1] * self.bits // 8), torch.int8)
        scale = torch.empty(rows, dtype=torch_dtype(self.scale_dtype))
        outcome = kernels.quantize(self.bits, as_numpy(weight), packed.numpy(), as_numpy(scale))
        refuse(outcome, weight, rows, self.scale_dtype, "rows")
        shape = (rows, int(weight.shape[1]))
        return PackedTensor(self, shape, {"weight": packed, "weight_scale": scale})


def overflowed_rows(packed: PackedTensor) -> Tensor:
    """Rows with a code of -8 or -128, which no correct writer produces.

    Upstream does not clamp: +8 wraps to -8 and +128 to -128, so the largest weight of such a row has probably the
    wrong sign. It happens to 1 row in 16 of a bfloat16 model in int8.

    Parameters
    ----------
    packed : PackedTensor
        Of the family glm, ``(N, K)``.

    Returns
    -------
    Tensor
        int64, ascending row numbers.

    Raises
    ------
    ConfigError
        If it is of another family.
    """
    if packed.packer.family != FAMILY:
        raise ConfigError("format", packed.format, "a format of the family glm")
    codes = packed.unpack().codes
    return (codes == 0).any(1).nonzero().flatten()
