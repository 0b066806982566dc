"""The family ``dense``: plain numbers."""

from __future__ import annotations

from types import MappingProxyType

from qformats.interfaces.dense import DensePacker, dense
from qformats.interfaces.family import Family
from qformats.interfaces.packer import Packer
from qformats.numbers.dtypes import SIZES

__all__ = ["Dense"]


class Dense(Family):
    """Plain weights. Other dtypes (integers, f64) can be read and copied."""

    name = "dense"
    packers = (dense("f32"), dense("f16"), dense("bf16"))
    programs = ("vllm", "transformers", "mlx")
    aliases = MappingProxyType(
        {
            **dict.fromkeys(("fp32", "float32", "float"), "f32"),
            **dict.fromkeys(("fp16", "float16", "half"), "f16"),
            "bfloat16": "bf16",
        }
    )
    similar = MappingProxyType(
        dict.fromkeys(("safetensors", "hf", "huggingface", "transformers"), ("bf16", "f16", "f32"))
    )

    def hub_name(self, packer: Packer) -> str:
        """``BF16``."""
        return packer.spec.variant.upper()

    def parse(self, variant: str) -> DensePacker:
        """Packer of one dtype."""
        if variant not in SIZES:
            raise self.unknown(variant)
        return dense(variant)
