"""All targets by name."""

from __future__ import annotations

from collections.abc import Mapping

from . import (
    adapter_folders,
    gguf_files,
    imatrix_files,
    quantized_folders,
    rank_files,
    records,
    tokenizer_files,
    weight_files,
)
from .target import Target

__all__ = ["TARGETS"]

_FAMILIES = (
    gguf_files,
    weight_files,
    rank_files,
    quantized_folders,
    tokenizer_files,
    imatrix_files,
    records,
    adapter_folders,
)
TARGETS: Mapping[str, Target] = {target.name: target for family in _FAMILIES for target in family.TARGETS}
