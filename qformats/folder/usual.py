"""Models with exactly the tensors of their type, told without Transformers: importing it takes seconds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qformats.folder.config_class import layout
from qformats.folder.conv1d import is_conv1d
from qformats.folder.shapes import known_shapes

__all__ = ["usual_class", "usual_fit"]

_HEAD = "lm_head.weight"
_EMBEDDINGS = ("model.embed_tokens.weight", "transformer.wte.weight")
_TABLES = (
    re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"),
    re.compile(r"(?:transformer\.)?h\.\d+\.attn\.(?:masked_)?bias"),
)
"""Rotations and masks that old files hold and that the class computes: of layers called so, and so."""
_BARE = re.compile(r"(?:h\.\d+|wte|wpe|ln_f)\.")
"""Names of GPT-2 as it was published: of the model without its head, which Transformers finds under both names."""


def usual_fit(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[str, tuple[str, ...]] | None:
    """Class of a model that has the tensors of its type, and those that the class computes itself.

    Parameters
    ----------
    config, shapes
        See :func:`usual_class`.

    Returns
    -------
    (str, tuple of str) or None
        None if that cannot be told here.

    Examples
    --------
    >>> import qformats
    >>> from qformats.folder.usual import usual_fit
    >>> model = qformats.open("demo")
    >>> shapes = {name: tensor.shape for name, tensor in model.tensors.items()}
    >>> table = "model.layers.0.self_attn.rotary_emb.inv_freq"
    >>> usual_fit(model.config, shapes | {table: (16,)})
    ('LlamaForCausalLM', ('model.layers.0.self_attn.rotary_emb.inv_freq',))
    """
    table = layout(config.get("model_type"))
    if table is None:
        return None
    prefixed = table["layer"][0][0].startswith("transformer.h.")
    computed = _TABLES[prefixed]
    ignored = tuple(name for name in shapes if computed.fullmatch(name))
    own = {name: shape for name, shape in shapes.items() if name not in ignored}
    if prefixed and all(_BARE.match(name) for name in own):
        own = {f"transformer.{name}": shape for name, shape in own.items()}
    found = usual_class(config, own)
    return None if found is None else (found, ignored)


def usual_class(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Class of a model that has exactly the tensors of its type.

    Parameters
    ----------
    config : mapping
        config.json.
    shapes : mapping of str to tuple of int
        Shape of every tensor as Transformers stores it, by name.

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
    model_type = str(config.get("model_type"))
    table = layout(model_type)
    if table is None:
        return None
    name: str = table["model_class"]
    if config.get("architectures", [name]) not in ([name], None) or "auto_map" in config:
        return None
    layers = [config[key] for key in ("num_hidden_layers", table["layers"]) if key in config]
    if not all(isinstance(count, int) and count <= len(shapes) for count in layers):
        return None
    wanted = known_shapes(config)
    given = {tensor: tuple(shape) for tensor, shape in shapes.items()}
    if wanted is None:
        return None
    if _HEAD in given and _HEAD not in wanted:
        # A copy, if not an equal one.
        home = next((name for name in _EMBEDDINGS if name in wanted), None)
        if home is None:
            return None
        wanted[_HEAD] = wanted[home]
    stored = {
        tensor: shape[::-1] if len(shape) == 2 and is_conv1d(model_type, tensor) else shape
        for tensor, shape in wanted.items()
    }
    return name if given == stored else None
