"""Plain numbers as a format: ``dense:f32``, ``dense:f16``, ``dense:bf16``."""

from __future__ import annotations

from collections.abc import Sequence

from qformats.dtypes import SIZES
from qformats.interfaces import DensePacker, unknown_variant
from qformats.spec import FieldSpec, FormatSpec

__all__ = ["Dense"]

_SUMMARIES = {
    "f32": "plain float32; exact for every format here",
    "f16": "plain float16; one rounding, at most 65504",
    "bf16": "plain bfloat16; one rounding",
}


class Dense(DensePacker):
    """Weights as they are. The other dtypes (integers, f64) can be read and copied."""

    family = "dense"
    default_variant = "f32"
    container = "huggingface"

    def __init__(self, dtype: str) -> None:
        spec = FormatSpec(
            family=self.family,
            variant=dtype,
            summary=_SUMMARIES.get(dtype, f"plain {dtype}; read and copied"),
            fields=(FieldSpec("weight", ("N", "K"), dtype, "weight units"),),
            canonical=False,
            source="IEEE 754; safetensors:README.md",
        )
        super().__init__(spec, dtype)

    @classmethod
    def variants(cls) -> Sequence[str]:
        """Floats that weights can be written as."""
        return tuple(_SUMMARIES)

    @classmethod
    def parse(cls, variant: str) -> Dense:
        """Packer of one dtype."""
        if variant not in SIZES:
            raise unknown_variant(cls.family, variant, cls.variants())
        return cls(variant)
