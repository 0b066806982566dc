"""ChatGLM-6B and GLM-130B as models that run, without code of their repositories.

Transformers has no class for these two; :mod:`~qformats_glm.models.modeling` does. Nothing here imports torch or
Transformers before a model is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from qformats import Checkpoint, ModelClass
from qformats.interfaces import Evaluation

__all__ = ["ChatGLM6BModel", "GLM130BModel"]


class _BlankFilling(ModelClass):
    """A GLM that fills blanks: every text needs a mask token and a token that begins the answer."""

    gated: ClassVar[bool]
    """Whether the feed-forward networks are gated."""

    def text_prefix(self, config: Mapping[str, Any]) -> tuple[int, ...]:
        """``[gMASK] <sop>``: after these two the model reads from left to right, as a causal language model."""
        parsed = self.config_class().from_dict(dict(config))
        return parsed.gmask_token_id, parsed.bos_token_id

    def evaluation(self, config: Mapping[str, Any]) -> Evaluation:
        """As GLM-130B was evaluated."""
        from qformats_glm.models.evaluation import BlankFilling

        return BlankFilling(self.config_class().from_dict(dict(config)))

    def share(self, source: Checkpoint, rank: int, ranks: int) -> Checkpoint:
        """Heads, inner features and rows of the vocabulary, as in a folder of ranks."""
        from qformats_glm.models.dividing import Share

        return Share(source, rank, ranks, gated=self.gated)


class ChatGLM6BModel(_BlankFilling):
    """ChatGLM-6B, which shares its ``model_type`` with ChatGLM2 and later, and nothing else."""

    name = "chatglm-6b"
    summary = "ChatGLM-6B of March 2023 and later"
    gated = False

    def describes(self, config: Mapping[str, Any]) -> bool:
        """Whether the feed-forward network has ChatGLM-6B's name for its size."""
        return config.get("model_type") == "chatglm" and "inner_hidden_size" in config

    def config_class(self) -> Any:
        """``ChatGLM6BConfig``."""
        from qformats_glm.models.configuration import ChatGLM6BConfig

        return ChatGLM6BConfig

    def model_class(self) -> Any:
        """``ChatGLM6BForCausalLM``."""
        from qformats_glm.models.modeling import ChatGLM6BForCausalLM

        return ChatGLM6BForCausalLM


class GLM130BModel(_BlankFilling):
    """GLM-130B, of which only the files of ranks were published."""

    name = "glm-130b"
    summary = "GLM-130B"
    gated = True

    def config_class(self) -> Any:
        """``GLM130BConfig``."""
        from qformats_glm.models.configuration import GLM130BConfig

        return GLM130BConfig

    def model_class(self) -> Any:
        """``GLM130BForCausalLM``."""
        from qformats_glm.models.modeling import GLM130BForCausalLM

        return GLM130BForCausalLM
