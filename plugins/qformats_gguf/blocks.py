"""Simple block types, as data: 32 elements share a float16 scale."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BLOCK", "LAYOUTS", "TYPES", "BlockLayout"]

BLOCK = 32


@dataclass(frozen=True)
class BlockLayout:
    """One block type: bits of a code, and whether blocks store a minimum (fp16, behind the fp16 scale)."""

    bits: int
    minimum: bool = False

    @property
    def fifth(self) -> bool:
        """Whether fifth bits lie in a word before the nibbles."""
        return self.bits == 5

    @property
    def codes_at(self) -> int:
        """Byte of a block at which its codes begin."""
        return 2 + 2 * self.minimum + 4 * self.fifth

    @property
    def size(self) -> int:
        """Bytes of a block."""
        return self.codes_at + (32 if self.bits == 8 else 16)


LAYOUTS = {
    "q4_0": BlockLayout(4),
    "q4_1": BlockLayout(4, minimum=True),
    "q5_0": BlockLayout(5),
    "q5_1": BlockLayout(5, minimum=True),
    "q8_0": BlockLayout(8),
}
TYPES = {name: kind.size for name, kind in LAYOUTS.items()}
"""Bytes of one block, by type name."""
