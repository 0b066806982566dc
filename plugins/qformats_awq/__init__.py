"""AWQ: folders of AutoAWQ, read in all layouts, written in the one that every program loads; and the quantizer."""

from __future__ import annotations

from qformats import Family, Quantizer, hookimpl
from qformats_awq.family import AWQFamily
from qformats_awq.quantizer import AWQ

__all__: list[str] = []


@hookimpl
def qformats_register_families() -> list[type[Family]]:
    """The family ``awq``."""
    return [AWQFamily]


@hookimpl
def qformats_register_quantizers() -> list[type[Quantizer]]:
    """The quantizer ``awq``."""
    return [AWQ]
