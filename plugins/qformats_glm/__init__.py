"""GLM: vector-wise INT8 and INT4, ChatGLM folders, and tensor-parallel rank folders."""

from __future__ import annotations

from qformats import Family, Loader, hookimpl
from qformats_glm.family import GLM
from qformats_glm.folder import ChatGLMFolder
from qformats_glm.ranks import RankFolder

__all__: list[str] = []


@hookimpl
def qformats_register_families() -> list[type[Family]]:
    """The family ``glm``."""
    return [GLM]


@hookimpl
def qformats_register_loaders() -> list[type[Loader]]:
    """ChatGLM folders, and folders with a file per tensor-parallel rank."""
    return [ChatGLMFolder, RankFolder]
