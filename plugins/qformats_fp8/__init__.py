"""FP8: folders as DeepSeek and Qwen publish them, with a scale for each block of 128 x 128."""

from __future__ import annotations

from qformats import Family, hookimpl
from qformats_fp8.family import FP8

__all__: list[str] = []


@hookimpl
def qformats_register_families() -> list[type[Family]]:
    """The family ``fp8``."""
    return [FP8]
