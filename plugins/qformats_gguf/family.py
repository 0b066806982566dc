"""The family ``gguf``: the names of tensor types."""

from __future__ import annotations

from types import MappingProxyType

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
    other_names = ("llama.cpp", "llamacpp")
    aliases = MappingProxyType({"q8": "q8_0", "fp16": "f16", "fp32": "f32"})
    # llama.cpp's mixes, and short names of several types: of what can be written, the next in quality and size.
    similar = MappingProxyType(
        {
            **dict.fromkeys(("q2", "q3", "q2_k_s", "q3_k_s", "q3_k_m", "q3_k_l"), ("q4_0", "q4_1")),
            **dict.fromkeys(("q4", "q4_k", "q4_k_s"), ("q4_0", "q4_1", "q5_0")),
            "q4_k_m": ("q4_1", "q5_0", "q4_0"),
            **dict.fromkeys(("q5", "q5_k", "q5_k_s"), ("q5_0", "q5_1")),
            "q5_k_m": ("q5_1", "q5_0", "q8_0"),
            **dict.fromkeys(("q6", "q6_k"), ("q5_1", "q8_0")),
            "fp8": ("q8_0",),
        }
    )

    def parse(self, variant: str) -> Packer:
        """Packer of one tensor type, in any case."""
        try:
            return packer_of(by_name(variant))
        except UnknownFormatError:
            raise self.unknown(variant) from None
