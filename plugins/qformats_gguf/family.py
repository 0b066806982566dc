"""The family ``gguf``: the names of tensor types."""

from __future__ import annotations

import re
from types import MappingProxyType

from qformats import Family, Packer
from qformats.errors import UnknownFormatError
from qformats.interfaces import Mixture
from qformats_gguf.mixes import MIXES
from qformats_gguf.packers import LISTED, packer_of
from qformats_gguf.types import by_name

__all__ = ["GGUF"]


_MIX = re.compile(r"(i?q\d_k|i?q\d)_(?:xs|s|m|l|xl)")
"""Names of files for what llama.cpp makes of several types."""


class _Mix(Mixture):
    """One of llama.cpp's mixes."""

    container = "gguf"


def _mixtures() -> tuple[Mixture, ...]:
    """Mixes of types that can be written, under names that are no types."""
    found = []
    for mix in MIXES.values():
        typical = packer_of(by_name(mix.base))
        if mix.name != mix.base and typical.writable:
            more = ", and more bits for some matrices" if mix.name != "q3_k_s" else ""
            output = f"{mix.base}{more}; as llama-quantize makes it"
            found.append(_Mix(mix.name, output, typical))
    return tuple(found)


class GGUF(Family):
    """Tensor types of GGUF files, and llama.cpp's mixes of them."""

    name = "gguf"
    packers = LISTED
    mixtures = _mixtures()
    default_variant = "q8_0"
    other_names = ("llama.cpp", "llamacpp")
    aliases = MappingProxyType({"q8": "q8_0", "fp16": "f16", "fp32": "f32"})
    # llama.cpp's mixes, and short names of several types: of what can be written, the next in quality and size.
    similar = MappingProxyType(
        {
            "q2": ("q2_k", "q3_k_s"),
            "q3": ("q3_k_m", "q3_k_l", "q3_k_s"),
            "q4": ("q4_k_m", "q4_k_s", "q4_0"),
            "q5": ("q5_k_m", "q5_k_s", "q5_0"),
            **dict.fromkeys(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m"), ("q2_k",)),
            **dict.fromkeys(("iq3_xxs", "iq3_xs", "iq3_s", "iq3_m"), ("q3_k_m", "iq4_xs")),
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
        """Packer of one tensor type, or a mix, in any case."""
        try:
            return packer_of(by_name(variant))
        except UnknownFormatError:
            for mixture in self.mixtures:
                if mixture.spec.variant == variant.lower():
                    return mixture
            raise self.unknown(variant) from None
