"""TorchAO: folders that other programs have quantized are read."""

from __future__ import annotations

from qformats import Family, hookimpl
from qformats_torchao.family import TorchAO

__all__: list[str] = []


@hookimpl
def qformats_register_families() -> list[type[Family]]:
    """The family ``torchao``."""
    return [TorchAO]
