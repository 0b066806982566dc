"""GLM: vector-wise INT8 and INT4, ChatGLM folders, tensor-parallel rank folders, and two models that run."""

from __future__ import annotations

from qformats import Family, Loader, ModelClass, hookimpl
from qformats_glm.family import GLM
from qformats_glm.folder import ChatGLMFolder
from qformats_glm.models import ChatGLM6BModel, GLM130BModel
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


@hookimpl
def qformats_register_models() -> list[type[ModelClass]]:
    """ChatGLM-6B and GLM-130B, which Transformers has no classes for."""
    return [ChatGLM6BModel, GLM130BModel]
