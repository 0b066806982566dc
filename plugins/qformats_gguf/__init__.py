"""GGUF, the format of llama.cpp: block types, files, architectures and tokenizers."""

from __future__ import annotations

from qformats import Family, Loader, hookimpl
from qformats_gguf.family import GGUF
from qformats_gguf.loader import GGUFLoader

__all__: list[str] = []


@hookimpl
def qformats_register_families() -> list[type[Family]]:
    """The family ``gguf``."""
    return [GGUF]


@hookimpl
def qformats_register_loaders() -> list[type[Loader]]:
    """GGUF files."""
    return [GGUFLoader]
