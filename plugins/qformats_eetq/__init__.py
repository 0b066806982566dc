"""EETQ: folders that other programs have quantized are read."""

from __future__ import annotations

from qformats import Family, hookimpl
from qformats_eetq.family import EETQ

__all__: list[str] = []


@hookimpl
def qformats_register_families() -> list[type[Family]]:
    """The family ``eetq``."""
    return [EETQ]
