"""GLM: vector-wise INT8 and INT4, ChatGLM folders, and tensor-parallel rank folders."""

from __future__ import annotations

from qformats import Loader, Packer, hookimpl
from qformats_glm.folder import ChatGLMFolder
from qformats_glm.packer import GLMPacker
from qformats_glm.ranks import RankFolder

__all__: list[str] = []


@hookimpl
def qformats_register_packers() -> list[type[Packer]]:
    """The family ``glm``."""
    return [GLMPacker]


@hookimpl
def qformats_register_loaders() -> list[type[Loader]]:
    """ChatGLM folders, and folders with a file a tensor-parallel rank."""
    return [ChatGLMFolder, RankFolder]
