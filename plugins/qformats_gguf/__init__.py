"""GGUF, the format of llama.cpp: block types, files, architectures and tokenizers."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from qformats import Family, Loader, hookimpl
from qformats_gguf import hookspecs
from qformats_gguf.family import GGUF
from qformats_gguf.loader import GGUFLoader
from qformats_gguf.mxfp4_folder import Mxfp4Folder

__all__: list[str] = []


@hookimpl
def qformats_register_families() -> list[type[Family]]:
    """The family ``gguf``."""
    return [GGUF]


@hookimpl
def qformats_register_loaders() -> list[type[Loader]]:
    """GGUF files, and folders that hold blocks of one of its types."""
    return [GGUFLoader, Mxfp4Folder]


@hookimpl
def qformats_register_hooks() -> list[ModuleType]:
    """The hook for further architectures."""
    return [hookspecs]


@hookimpl
def qformats_gguf_register_architectures() -> list[Path]:
    """The table that comes with it, less what its files share."""
    files = sorted((Path(__file__).parent / "architectures" / "table").glob("*.toml"))
    return [file for file in files if file.stem != "common"]
