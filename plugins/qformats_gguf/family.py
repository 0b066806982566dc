"""The family ``gguf``: the names of tensor types."""

from __future__ import annotations

from qformats import Family, Packer
from qformats.errors import UnknownFormatError
from qformats_gguf.packers import LISTED, packer_of
from qformats_gguf.types import by_name

__all__ = ["GGUF"]


class GGUF(Family):
    """Tensor types of GGUF files."""

    name = "gguf"
    packers = LISTED
    default_variant = "q8_0"

    def parse(self, variant: str) -> Packer:
        """Packer of one tensor type, in any case."""
        try:
            return packer_of(by_name(variant))
        except UnknownFormatError:
            raise self.unknown(variant) from None
