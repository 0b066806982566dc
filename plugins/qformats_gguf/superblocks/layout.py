"""Types whose blocks share scales in two levels, as data: where codes and scales lie in a block.

A code is cut into *planes*: some of its bits, several codes to a byte. All planes of all types are of one kind:

    byte ``n * stride + l`` of a plane holds, from its lowest bits up, elements ``n * group + t * stride + l`` for
    ``t = 0, 1, ..., 8 / width - 1``, with ``group = stride * 8 / width``.

Source: llama.cpp:ggml/src/ggml-common.h (fields) and ggml/src/ggml-quants.c (order of the codes).
"""

from __future__ import annotations

from dataclasses import dataclass

from qformats_gguf.types import by_name

__all__ = ["IQ4", "LAYOUTS", "Plane", "SuperLayout"]

IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""Levels of iq4_nl and iq4_xs (``kvalues_iq4nl``)."""

Plane = tuple[int, int, int, int]
"""Lowest bit of a code that it holds, how many (width), stride in bytes, first byte in the block."""


@dataclass(frozen=True)
class SuperLayout:
    """How one type stores its blocks.

    Attributes
    ----------
    name : str
        Type.
    sub : int
        Elements that share a scale.
    bits : int
        Width of a code.
    planes : tuple of Plane
        Where the bits of codes lie.
    coding : str
        How sub-scales are stored: ``"nibbles"`` (q2_k), ``"six"`` (q3_k), ``"pairs"`` (q4_k, q5_k), ``"bytes"`` (q6_k),
        ``"split"`` (iq4_xs), or ``"none"``: one float16 for the block.
    minimum : bool
        Whether there is a minimum beside each scale.
    lowest, highest : int
        Range of sub-scales; those of minima begin at 0.
    table : tuple of int
        Levels, where they are not equally spaced.
    """

    name: str
    sub: int
    bits: int
    planes: tuple[Plane, ...]
    coding: str
    minimum: bool = False
    lowest: int = 1
    highest: int = 1
    table: tuple[int, ...] = ()

    @property
    def block(self) -> int:
        """Elements of a block."""
        return by_name(self.name).block_size

    @property
    def size(self) -> int:
        """Bytes of a block."""
        return by_name(self.name).block_bytes

    @property
    def scales(self) -> int:
        """Scales of a block."""
        return self.block // self.sub

    @property
    def two_level(self) -> bool:
        """Whether a scale is a product of two stored numbers."""
        return self.coding != "none"

    @property
    def mode(self) -> str:
        """How the shared kernel decodes a code: ``"affine"``, ``"minimum"`` or ``"table"``."""
        return "table" if self.table else "minimum" if self.minimum else "affine"

    @property
    def zero(self) -> int:
        """Code of the value zero, apart from a minimum; 0 where there is a table."""
        return 0 if self.minimum or self.table else 1 << (self.bits - 1)

    @property
    def reach(self) -> float:
        """Largest magnitude that a block can hold: with larger ones C's sums overflow, and blocks become zeros."""
        level = max(map(abs, self.table)) if self.table else (1 << self.bits) - 1 - self.zero
        return 65504.0 * max(-self.lowest, self.highest) * max(level, self.zero)

    def at(self, field: str) -> int:
        """First byte of a field; -1 if there is none."""
        start = 0
        for name, dtype, count in by_name(self.name).fields:
            if name == field:
                return start
            start += count * (2 if dtype.endswith("16") else 1)
        return -1


LAYOUTS = {
    layout.name: layout
    for layout in (
        SuperLayout("q4_k", 32, 4, ((0, 4, 32, 16),), "pairs", minimum=True, lowest=0, highest=63),
        SuperLayout(
            "q5_k", 32, 5, ((0, 4, 32, 48), (4, 1, 32, 16)), "pairs", minimum=True, lowest=0, highest=63
        ),
        SuperLayout("q6_k", 16, 6, ((0, 4, 64, 0), (4, 2, 32, 128)), "bytes", lowest=-128, highest=127),
        SuperLayout("q2_k", 16, 2, ((0, 2, 32, 16),), "nibbles", minimum=True, lowest=0, highest=15),
        SuperLayout("q3_k", 16, 3, ((0, 2, 32, 32), (2, 1, 32, 0)), "six", lowest=-32, highest=31),
        SuperLayout("iq4_xs", 32, 4, ((0, 4, 16, 8),), "split", lowest=-32, highest=31, table=IQ4),
        SuperLayout("iq4_nl", 32, 4, ((0, 4, 16, 2),), "none", table=IQ4),
    )
}
"""By name."""
