"""The language model in a folder that also holds a vision model: its configuration and the names of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qformats_gguf.architectures.limits import Config
from qformats_gguf.architectures.models import HFModel

__all__ = ["bare", "inside", "text_part", "text_type", "wrapped_like"]

# As Transformers saves them, and as newer folders and its memory have them.
_PREFIXES = (("model.language_model.", "model."), ("language_model.", ""))
_OTHERS = (
    *("vision_tower.", "model.vision_tower."),
    *("multi_modal_projector.", "model.multi_modal_projector."),
)


def text_type(config: Config) -> str | None:
    """Model type of the language model, if the configuration says it."""
    text = config.get("text_config")
    found = text.get("model_type") if isinstance(text, Mapping) else None
    return None if found is None else str(found)


def text_part(config: Config, model: HFModel) -> dict[str, Any]:
    """Configuration of the language model; the outer one decides about tied embeddings, as in Transformers."""
    text = config.get("text_config")
    found = dict(text) if isinstance(text, Mapping) else {}
    found |= {"model_type": model.model_type, "architectures": list(model.architectures)}
    if config.get("tie_word_embeddings") is not None:
        found["tie_word_embeddings"] = config["tie_word_embeddings"]
    return found


def inside(name: str) -> bool:
    """Whether a tensor belongs to the language model."""
    return not name.startswith(_OTHERS)


def bare(name: str) -> str:
    """Name of a tensor of the language model as the model alone has it.

    Examples
    --------
    >>> from qformats_gguf.architectures.multimodal import bare
    >>> bare("language_model.model.norm.weight"), bare("model.language_model.norm.weight"), bare("lm_head.weight")
    ('model.norm.weight', 'model.norm.weight', 'lm_head.weight')
    """
    for prefix, own in _PREFIXES:
        if name.startswith(prefix):
            return own + name.removeprefix(prefix)
    return name


def wrapped_like(name: str, other: str) -> str:
    """The name `name` of the language model alone, in a folder that has the tensor `other`."""
    if other.startswith("language_model."):
        return "language_model." + name
    return "model.language_model." + name.removeprefix("model.")
