"""ModelOpt: NVFP4 and FP8 folders of NVIDIA's Model Optimizer."""

from __future__ import annotations

from qformats import Family, hookimpl
from qformats_modelopt.family import ModelOpt

__all__: list[str] = []


@hookimpl
def qformats_register_families() -> list[type[Family]]:
    """The family ``modelopt``."""
    return [ModelOpt]
