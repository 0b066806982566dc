"""Refusing ``resize_token_embeddings`` if embeddings are packed."""

from __future__ import annotations

from typing import Any

from qformats.errors import ConfigError
from qformats.runtime.bound import Bound
from qformats.runtime.layer import PackedLayer

__all__ = ["refuse_resizing"]


def refuse_resizing(model: Any) -> None:
    """Make a model refuse another number of tokens, for which Transformers would copy codes as if they were weights."""
    model.resize_token_embeddings = Bound(_resized, model)


def _resized(model: Any, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> Any:
    """Stand in for ``resize_token_embeddings``, which would copy codes as if they were weights."""
    given, output = model.get_input_embeddings(), model.get_output_embeddings()
    packed = any(isinstance(module, PackedLayer) for module in (given, output))
    if packed and new_num_tokens not in (None, given.num_embeddings):
        hint = "Resize the unquantized model, then quantize it"
        expected = f"the model's own {given.num_embeddings}, since its embeddings are packed"
        raise ConfigError("resize_token_embeddings", new_num_tokens, expected, hint)
    return type(model).resize_token_embeddings(model, new_num_tokens, *args, **kwargs)
