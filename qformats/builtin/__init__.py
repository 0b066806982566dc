"""What the framework itself registers: plain numbers, round-to-nearest, the Hugging Face folder."""

from __future__ import annotations

from qformats.builtin.dense import Dense
from qformats.builtin.rtn import RoundToNearest
from qformats.folder import HuggingFaceFolder
from qformats.hookspecs import hookimpl
from qformats.interfaces.family import Family
from qformats.interfaces.loader import Loader
from qformats.interfaces.quantizer import Quantizer

__all__: list[str] = []


@hookimpl
def qformats_register_quantizers() -> list[type[Quantizer]]:
    """Round-to-nearest."""
    return [RoundToNearest]


@hookimpl
def qformats_register_families() -> list[type[Family]]:
    """Plain numbers."""
    return [Dense]


@hookimpl
def qformats_register_loaders() -> list[type[Loader]]:
    """The Hugging Face folder."""
    return [HuggingFaceFolder]
