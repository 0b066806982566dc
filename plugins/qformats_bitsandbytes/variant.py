"""Names of the family's variants."""

from __future__ import annotations

__all__ = ["FAMILY", "STORAGE", "four_bit_variant"]

FAMILY = "bitsandbytes"
STORAGE = {"u8": "uint8", "bf16": "bfloat16", "f16": "float16", "f32": "float32"}
"""dtypes that packed bytes may be stored as, and their names in config.json."""


def four_bit_variant(kind: str, nested: bool, block_size: int, storage: str) -> str:
    """Name of a variant, without what is usual: ``nf4-dq-bs128-bf16``."""
    parts = [
        kind,
        *(["dq"] if nested else []),
        *([f"bs{block_size}"] if block_size != 64 else []),
        *([storage] if storage != "u8" else []),
    ]
    return "-".join(parts)
