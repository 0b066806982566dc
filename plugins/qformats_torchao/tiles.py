"""The packer of TorchAO's 4 bits in the order of tensor cores: ``Int4TilePackedTo4dTensor``.

Source: pytorch:aten/src/ATen/native/cuda/int4mm.cu; ao:torchao/quantization/quantize_/workflows/int4/
int4_tile_packed_to_4d_tensor.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qformats import FieldSpec, FormatSpec, KernelSpec, PackedTensor, Packer, QuantizedTensor
from qformats_torchao.packers import FAMILY, finite

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BOTH", "GROUPS", "INNER", "PADDED", "TilePacker", "padded"]

BOTH = "_weight_scale_and_zero"
GROUPS = (32, 64, 128, 256)
"""Columns of a group that the kernel takes."""
INNER = (8, 4, 2)
"""Tiles of 16 columns whose words a lane has next to each other; TorchAO always chooses 8."""
PADDED = (8, 1024)
"""Rows and columns are filled up to multiples of these with weights of 0, which nothing stored counts."""


class TilePacker(Packer):
    """``Int4TilePackedTo4dTensor``: ``scale * (code - 8) + zero``, codes in the order of lanes; read only.

    A tile is what an instruction ``m16n8k16`` multiplies by: 8 rows, 16 columns. Of two tiles next to each other a lane
    has 8 codes, in one word. Lane ``4 r + c`` has row ``r`` of the 8, and of the 32 columns::

        bits     0..3     4..7     8..11    12..15   16..19     20..23     24..27      28..31
        column   2 c      2 c + 8  2 c + 16 2 c + 24 2 c + 1    2 c + 9    2 c + 17    2 c + 25

    Words of the same lane that follow each other along the row lie together, `inner` / 2 of them.

    Parameters
    ----------
    group_size : int
        Columns of a group, in :data:`GROUPS`.
    inner : int
        Tiles whose words lie together, in :data:`INNER`.
    """

    def __init__(self, group_size: int = 128, inner: int = INNER[0]) -> None:
        self.group_size, self.inner = group_size, inner
        rows, columns = PADDED
        blocks, groups = columns // (16 * inner), columns // group_size
        self.spec = FormatSpec(
            FAMILY,
            f"int4-tiles-{group_size}g" + ("" if inner == INNER[0] else f"-inner{inner}"),
            f"4 bits, a scale and a float zero point per {group_size} columns, in the order of tensor cores",
            (
                FieldSpec(
                    "_weight_qdata",
                    (f"N / {rows}", f"K / {columns} * {blocks}", "32", str(inner // 2)),
                    "i32",
                    "packed codes",
                ),
                FieldSpec(
                    BOTH,
                    (f"K / {columns} * {groups}", f"N / {rows} * {rows}", "2"),
                    "bf16",
                    "weight units: per step, and of code 8",
                ),
            ),
            bits=4,
            block_size=group_size,
            source="pytorch:aten/src/ATen/native/cuda/int4mm.cu",
            kernel=KernelSpec(4, "minimum", group_size, "f32"),
        )

    def veto(self, shape: Sequence[int]) -> str | None:
        """Whole groups in each row."""
        problem = super().veto(shape)
        return problem or (None if shape[0] and shape[1] else f"it is empty ({shape[0]} x {shape[1]})")

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
        finite(fields, BOTH)
        return PackedTensor(self, shape, {spec.name: fields[spec.name] for spec in self.spec.fields})

    def scales(self, packed: PackedTensor) -> Sequence[Tensor]:
        """Scales and zero points, apart."""
        return packed.fields[BOTH].unbind(-1)

    def unpack(self, packed: PackedTensor) -> QuantizedTensor:
        """Codes and parameters, exactly as stored; bfloat16 becomes float32."""
        import torch

        fields = self.checked(packed).fields
        rows, columns = int(packed.shape[0]), int(packed.shape[1])
        stored = fields["_weight_qdata"].contiguous()
        words = stored.view(torch.uint8).reshape(*stored.shape[:2], 8, 4, self.inner // 2, 2, 2)
        # By now: tile of rows, block of columns, row, pair of columns, word, odd column, and two digits of which 8.
        codes = torch.stack([words & 15, words >> 4], -1).permute(0, 2, 1, 4, 6, 7, 3, 5)
        codes = codes.reshape(8 * stored.shape[0], -1)[:rows, :columns].contiguous()
        scale, zero = (
            part[: columns // self.group_size, :rows].t().float().contiguous()
            for part in fields[BOTH].unbind(-1)
        )
        return QuantizedTensor(codes, scale, (1, self.group_size), zero_point=8, minimum=zero)


def padded(shape: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns with those that fill them up.

    Examples
    --------
    >>> from qformats_torchao.tiles import padded
    >>> padded((24, 1025))
    (24, 2048)
    """
    rows, columns = (-(-count // to) * to for count, to in zip(shape, PADDED, strict=True))
    return rows, columns
