"""Quanto: folders that other programs have quantized are read."""

from __future__ import annotations

from qformats import Family, hookimpl
from qformats_quanto.family import Quanto

__all__: list[str] = []


@hookimpl
def qformats_register_families() -> list[type[Family]]:
    """The family ``quanto``."""
    return [Quanto]
