"""The packer of ``eetq``: 8 bits and a scale per row, in the order in which CUTLASS's kernels of mixed types read them.

Source: EETQ:csrc/cutlass_kernels/cutlass_preprocessors.cc.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qformats import FieldSpec, FormatSpec, KernelSpec, PackedTensor, Packer, QuantizedTensor
from qformats.errors import ConfigError, Described

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FAMILY", "TILE", "EETQPacker"]

FAMILY = "eetq"
TILE = 64
"""Columns of a weight that lie together, before as many of its neighbour; shapes are multiples of it."""


class EETQPacker(Packer):
    """``scale * (code - 128)``; read only.

    From the matrix ``(K, N)`` of a transposed weight, in signed bytes, EETQ makes what is stored in four steps:

    1. Of each 16 rows the order becomes 0 1 8 9 2 3 10 11 4 5 12 13 6 7 14 15, in which a lane of a tensor core's
       instruction finds its operands one after the other.
    2. The matrix is transposed: columns become contiguous.
    3. Of two neighbouring columns, 64 bytes of the first are followed by 64 of the second: a line of the cache.
    4. 128 is added to each byte, and of each four the second and the third change places.

    That is the order for GPUs since Turing. On Volta EETQ takes another one, with the same shapes; nothing that is
    stored tells them apart, and neither EETQ nor Transformers can run one on the other's GPUs.
    """

    spec = FormatSpec(
        FAMILY,
        "int8",
        "8 bits, one scale per row, in the order of tensor cores",
        (
            FieldSpec("weight", ("K", "N"), "i8", "codes"),
            FieldSpec("weight_scales", ("N",), "f16", "weight units per step"),
        ),
        bits=8,
        block_size=0,
        source="EETQ:csrc/cutlass_kernels/cutlass_preprocessors.cc",
        kernel=KernelSpec(8, "affine", 0, "f16"),
    )

    def veto(self, shape: Sequence[int]) -> str | None:
        """Whole tiles: EETQ packs no others."""
        problem = super().veto(shape)
        if problem:
            return problem
        if not (shape[0] and shape[1]) or shape[0] % TILE or shape[1] % TILE:
            return f"{shape[0]} x {shape[1]} weights do not divide into tiles of {TILE}"
        return None

    def row_step(self, shape: Sequence[int]) -> int:
        """Only the whole tensor: the first dimension that is stored is that of columns."""
        return 0

    def from_stored(self, fields: Mapping[str, Tensor], shape: tuple[int, int]) -> PackedTensor:
        """Codes and scales, checked for NaN.

        Raises
        ------
        ConfigError
            If a scale is not finite.
        """
        scales = fields["weight_scales"]
        bad = int((~scales.isfinite()).sum())
        if bad:
            found = Described(f"{bad} values that are NaN or infinite")
            raise ConfigError("weight_scales", found, "finite numbers")
        return PackedTensor(self, shape, {"weight": fields["weight"], "weight_scales": scales})

    def unpack(self, packed: PackedTensor) -> QuantizedTensor:
        """Codes and scales, exactly as stored."""
        import torch

        fields = self.checked(packed).fields
        rows, columns = int(packed.shape[0]), int(packed.shape[1])
        stored = fields["weight"].contiguous().view(torch.uint8)
        # Pair of rows, tile, which of the two, 16 columns, and of these what column 8 b + 2 a + c is made of: a, c, b.
        parts = stored.reshape(rows // 2, columns // TILE, 2, TILE // 16, 4, 2, 2)
        codes = parts.permute(0, 2, 1, 3, 6, 4, 5).reshape(rows, columns)
        return QuantizedTensor(codes, fields["weight_scales"][:, None], (1, columns), zero_point=128)
