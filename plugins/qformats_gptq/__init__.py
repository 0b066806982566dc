"""GPTQ: folders of AutoGPTQ and GPTQModel, and the quantizer that calibrates for any format."""

from __future__ import annotations

from qformats import Family, Quantizer, hookimpl
from qformats_gptq.family import GPTQFamily
from qformats_gptq.quantizer import GPTQ

__all__: list[str] = []


@hookimpl
def qformats_register_families() -> list[type[Family]]:
    """The family ``gptq``."""
    return [GPTQFamily]


@hookimpl
def qformats_register_quantizers() -> list[type[Quantizer]]:
    """The quantizer ``gptq``."""
    return [GPTQ]
