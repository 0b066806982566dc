"""What the framework itself registers: plain numbers, round-to-nearest, the Hugging Face folder."""

from __future__ import annotations

from qformats.dense import Dense
from qformats.folder import HuggingFaceFolder
from qformats.hookspecs import hookimpl
from qformats.interfaces import Loader, Packer, Quantizer
from qformats.quantizers import RoundToNearest

__all__: list[str] = []


@hookimpl
def qformats_register_quantizers() -> list[type[Quantizer]]:
    """Round-to-nearest."""
    return [RoundToNearest]


@hookimpl
def qformats_register_packers() -> list[type[Packer]]:
    """Plain numbers."""
    return [Dense]


@hookimpl
def qformats_register_loaders() -> list[type[Loader]]:
    """The Hugging Face folder."""
    return [HuggingFaceFolder]
