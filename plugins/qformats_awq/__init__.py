"""AWQ: folders of AutoAWQ, read in all of its layouts and written in the one that every program loads."""

from __future__ import annotations

from qformats import Family, hookimpl
from qformats_awq.family import AWQFamily

__all__: list[str] = []


@hookimpl
def qformats_register_families() -> list[type[Family]]:
    """The family ``awq``."""
    return [AWQFamily]
