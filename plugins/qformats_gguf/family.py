"""The family ``gguf``: the names of tensor types."""

from __future__ import annotations

import re
from types import MappingProxyType

from qformats import Family, Packer
from qformats.errors import UnknownFormatError
from qformats_gguf.packers import LISTED, packer_of
from qformats_gguf.types import by_name

__all__ = ["GGUF"]


_MIX = re.compile(r"(i?q\d_k|i?q\d)_(?:xs|s|m|l|xl)")
"""Names of files for what llama.cpp makes of several types."""


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
            **dict.fromkeys(("q2", "q2_k_s"), ("q2_k", "q3_k")),
            **dict.fromkeys(("q3", "q3_k_s", "q3_k_m", "q3_k_l"), ("q3_k", "q4_k")),
            **dict.fromkeys(("q4", "q4_k_s", "q4_k_m"), ("q4_k", "q4_0", "q5_k")),
            **dict.fromkeys(("q5", "q5_k_s", "q5_k_m"), ("q5_k", "q5_0", "q6_k")),
            "q6": ("q6_k", "q8_0"),
            "fp8": ("q8_0",),
        }
    )

    def about(self, word: str) -> str:
        """What llama.cpp's mixes of types are: ``q4_k_m``."""
        mix = _MIX.fullmatch(word)
        try:
            base = packer_of(by_name(mix[1])) if mix else None
        except UnknownFormatError:
            base = None
        if base is None:
            return super().about(word)
        can = "can be read but not written" if not base.writable else f"is written as {base.name}"
        return f"it is llama.cpp's mix of {base.spec.variant} and larger types, which {can}"

    def parse(self, variant: str) -> Packer:
        """Packer of one tensor type, in any case."""
        try:
            return packer_of(by_name(variant))
        except UnknownFormatError:
            raise self.unknown(variant) from None
