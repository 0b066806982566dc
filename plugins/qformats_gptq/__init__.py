"""GPTQ: folders of AutoGPTQ and GPTQModel, and the quantizer that calibrates for any format."""

from __future__ import annotations

from qformats import Packer, Quantizer, hookimpl
from qformats_gptq.packer import GPTQPacker
from qformats_gptq.quantizer import GPTQ

__all__: list[str] = []


@hookimpl
def qformats_register_packers() -> list[type[Packer]]:
    """The family ``gptq``."""
    return [GPTQPacker]


@hookimpl
def qformats_register_quantizers() -> list[type[Quantizer]]:
    """The quantizer ``gptq``."""
    return [GPTQ]
