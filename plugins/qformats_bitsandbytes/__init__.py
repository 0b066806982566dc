"""bitsandbytes: NF4, FP4 and INT8 folders, as Transformers loads them."""

from __future__ import annotations

from qformats import Family, hookimpl
from qformats_bitsandbytes.family import BitsAndBytes

__all__: list[str] = []


@hookimpl
def qformats_register_families() -> list[type[Family]]:
    """The family ``bitsandbytes``."""
    return [BitsAndBytes]
