"""Models with exactly the tensors of their type, told without Transformers: importing it takes seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qformats.folder.shapes import known_shapes

__all__ = ["usual_class"]

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_HEAD = "lm_head.weight"


def usual_class(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Class of a model that has exactly the tensors of its type.

    Parameters
    ----------
    config : mapping
        config.json.
    shapes : mapping of str to tuple of int
        Shape of every tensor, by name.

    Returns
    -------
    str or None
        None if that cannot be told here: then :mod:`qformats.folder.skeleton` must.

    Examples
    --------
    >>> import qformats
    >>> from qformats.folder.usual import usual_class
    >>> model = qformats.open("demo")
    >>> shapes = {name: tensor.shape for name, tensor in model.tensors.items()}
    >>> usual_class(model.config, shapes)
    'LlamaForCausalLM'
    >>> usual_class(model.config | {"attention_bias": True}, shapes) is None
    True
    """
    name, layers = _CLASSES.get(str(config.get("model_type"))), config.get("num_hidden_layers")
    if name is None or config.get("architectures", [name]) != [name] or "auto_map" in config:
        return None
    if not isinstance(layers, int) or layers > len(shapes):
        return None
    wanted = known_shapes(config)
    given = {tensor: tuple(shape) for tensor, shape in shapes.items()}
    if wanted is not None and config["tie_word_embeddings"] and _HEAD in given:
        # A copy, if not an equal one.
        wanted[_HEAD] = wanted["model.embed_tokens.weight"]
    return name if given == wanted else None
