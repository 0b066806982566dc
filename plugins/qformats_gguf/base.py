"""What the packers of all tensor types share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qformats import FieldSpec, FormatSpec, PackedTensor, Packer
from qformats.numbers import SIZES, torch_dtype
from qformats_gguf.types import GGMLType

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SOURCE", "GGUFPacker", "spec_of"]

SOURCE = "llama.cpp:ggml/src/ggml-common.h"


class GGUFPacker(Packer):
    """What the packers of all tensor types share."""

    container = "gguf"

    type: GGMLType

    def veto(self, shape: Sequence[int]) -> str | None:
        """Blocks lie along rows; stacked matrices (experts) are rows too."""
        if len(shape) < 2:
            return f"its number of dimensions is {len(shape)} instead of 2 or more"
        if shape[-1] % self.type.block_size:
            return f"rows of {shape[-1]} do not divide into blocks of {self.type.block_size}"
        return None

    def stored(self, shape: Sequence[int]) -> dict[str, tuple[tuple[int, ...], str]]:
        """The one field: a row of blocks for each row of the weight, leading dimensions kept."""
        width = int(shape[-1]) // self.type.block_size * self.type.block_bytes
        return {"blocks": ((*shape[:-1], width), "u8")}

    def scales(self, packed: PackedTensor) -> Sequence[Tensor]:
        """Scales and minima of the blocks, views of the stored bytes."""
        fields = self.type.scales
        if not fields:
            return []
        blocks = self.blocks(packed).reshape(-1, self.type.block_bytes)
        return [blocks[:, at : at + SIZES[dtype]].view(torch_dtype(dtype))[:, 0] for at, dtype in fields]

    def row_step(self, shape: Sequence[int]) -> int:
        """Every row, but for a vector in blocks: elements are its rows, and lie in its blocks."""
        return int(len(shape) > 1 or self.type.block_size == 1)

    def blocks(self, packed: PackedTensor) -> Tensor:
        """Stored bytes of a packed tensor, checked.

        Raises
        ------
        ShapeError
            If they are not the bytes of a tensor of that shape.
        """
        # Vectors too: no program writes them in blocks, but a file may hold them.
        return self.intact(packed).fields["blocks"]


def spec_of(kind: GGMLType, summary: str, block_size: int = 0, **more: object) -> FormatSpec:
    """Descriptor of a type in blocks; `block_size` if scales are shared by fewer elements than a block has."""
    width = f"K / {kind.block_size} * {kind.block_bytes}"
    fields = (FieldSpec("blocks", ("N", width), "u8", "packed blocks"),)
    return FormatSpec(
        "gguf",
        kind.name,
        summary,
        fields,
        block_size=block_size or kind.block_size,
        source=SOURCE,
        **more,  # type: ignore[arg-type]
    )
