"""GGUF, the format of llama.cpp: block types, files, architectures and tokenizers."""

from __future__ import annotations

from qformats import Loader, Packer, hookimpl
from qformats_gguf.loader import GGUFLoader
from qformats_gguf.packers import GGUFPacker

__all__: list[str] = []


@hookimpl
def qformats_register_packers() -> list[type[Packer]]:
    """The family ``gguf``."""
    return [GGUFPacker]


@hookimpl
def qformats_register_loaders() -> list[type[Loader]]:
    """GGUF files."""
    return [GGUFLoader]
