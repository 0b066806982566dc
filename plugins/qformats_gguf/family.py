"""The family ``gguf``: the names of tensor types."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from qformats import Family, Packer
from qformats.errors import UnknownFormatError
from qformats.interfaces import Mixture
from qformats_gguf.mixes import MIXES, Mix
from qformats_gguf.packers import LISTED, packer_of
from qformats_gguf.types import by_name

__all__ = ["GGUF"]


_LATTICE = ("iq2_m", "iq3_xs", "iq3_m")
_OTHERS = re.compile(r"q\d_k_x?l")
"""Names that publishers give to mixes of their own."""


_ONLY_LLAMA_CPP = ("mxfp4", "nvfp4", "tq1_0", "tq2_0")
"""Types that vLLM's kernels for GGUF lack (csrc/quantization/gguf)."""


class _Mix(Mixture):
    """One of llama.cpp's mixes."""

    container = "gguf"


def _summary(mix: Mix) -> str:
    needs = ", from an importance matrix only" if mix.weighted else ""
    return f"{mix.summary}; as llama-quantize makes it{needs}"


def _mixtures() -> tuple[Mixture, ...]:
    """Mixes of types that can be written, under names that are no types."""
    return tuple(
        _Mix(mix.name, _summary(mix), packer_of(by_name(mix.base)))
        for mix in MIXES.values()
        if mix.name != mix.base
    )


class GGUF(Family):
    """Tensor types of GGUF files, and llama.cpp's mixes of them."""

    name = "gguf"
    packers = LISTED
    mixtures = _mixtures()
    default_variant = "q8_0"
    other_names = ("llama.cpp", "llamacpp")
    programs = ("llama.cpp", "transformers", "vllm")
    aliases = MappingProxyType({"q8": "q8_0", "fp16": "f16", "fp32": "f32"})
    # llama.cpp's mixes, and short names of several types: of what can be written, the next in quality and size.
    similar = MappingProxyType(
        {
            "q2": ("q2_k", "q3_k_s"),
            "q3": ("q3_k_m", "q3_k_l", "q3_k_s"),
            "q4": ("q4_k_m", "q4_k_s", "q4_0"),
            "q5": ("q5_k_m", "q5_k_s", "q5_0"),
            **{f"q{bits}_k_{size}": (f"q{bits}_k_m",) for bits in (3, 4, 5) for size in ("l", "xl")},
            **dict.fromkeys(("q2_k_l", "q2_k_xl"), ("q2_k",)),
            **dict.fromkeys(("q6_k_l", "q6_k_xl"), ("q6_k",)),
            **dict.fromkeys(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m"), ("q2_k",)),
            **dict.fromkeys(("iq3_xxs", "iq3_xs", "iq3_s", "iq3_m"), ("q3_k_m", "iq4_xs")),
            "q6": ("q6_k", "q8_0"),
            "fp8": ("q8_0",),
        }
    )

    def hub_name(self, packer: Packer) -> str:
        """As llama.cpp names files: ``Q4_K_M``."""
        return packer.spec.variant.upper()

    def refusal(self, program: str, packed: Mapping[str, Packer]) -> str:
        """Also types that only llama.cpp multiplies by."""
        own = [packer.name for packer in packed.values() if packer.spec.variant in _ONLY_LLAMA_CPP]
        return f"it has no {own[0]}" if program == "vllm" and own else super().refusal(program, packed)

    def about(self, word: str) -> str:
        """What mixes are that are not made here."""
        if word in _LATTICE:
            return "it is llama.cpp's mix of lattice types, which can be read but not written"
        if _OTHERS.fullmatch(word):
            return (
                "it is a publisher's own mix, which llama-quantize does not make; --tensor-type gives rules"
            )
        return super().about(word)

    def parse(self, variant: str) -> Packer:
        """Packer of one tensor type, or a mix, in any case."""
        try:
            return packer_of(by_name(variant))
        except UnknownFormatError:
            for mixture in self.mixtures:
                if mixture.spec.variant == variant.lower():
                    return mixture
            raise self.unknown(variant) from None
