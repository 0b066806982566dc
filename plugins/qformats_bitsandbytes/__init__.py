"""bitsandbytes: NF4, FP4 and INT8 folders, as Transformers loads them."""

from __future__ import annotations

from qformats import Packer, hookimpl
from qformats_bitsandbytes.family import BitsAndBytesPacker

__all__: list[str] = []


@hookimpl
def qformats_register_packers() -> list[type[Packer]]:
    """The family ``bitsandbytes``."""
    return [BitsAndBytesPacker]
