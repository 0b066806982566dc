"""Names and shapes of the commonest decoders, from config.json alone.

Transformers' own class gives the same, but to import it takes 4 seconds of a processor (torch 2.13, Transformers 5.23),
and to build it 0.05. The tables are recorded from those classes, and compared with them in
tests/folder/test_outline_shapes.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from qformats.folder.config_class import layout, recorded

__all__ = ["known_shapes"]

_FLAGS = ("attention_bias", "mlp_bias", "tie_word_embeddings")


def known_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]] | None:
    """Shape of every tensor on disk, in the order of Transformers' class.

    Parameters
    ----------
    config : mapping
        ``config.json``.

    Returns
    -------
    dict of str to tuple of int, or None
        Canonical shapes, ``(out_features, in_features)``. ``None`` if the type is not recorded, or a key that matters
        is unusual, or missing and without a recorded default: then Transformers must tell.

    Examples
    --------
    >>> from qformats.folder.shapes import known_shapes
    >>> sizes = dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"), 1)
    >>> heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "tie_word_embeddings": True}
    >>> len(known_shapes({"model_type": "llama", **sizes, **heads}))
    11
    """
    table = layout(config.get("model_type"))
    if table is None:
        return None
    known = recorded(config.get("model_type"))
    full = known.completed(config) if known is not None else dict(config)
    usual: Mapping[str, Any] = table["as usual"]
    if any(full.get(key, value) != value for key, value in usual.items()):
        return None
    flags = {key: full[key] for key in _FLAGS if key in full}
    if not all(isinstance(flag, bool) for flag in flags.values()) or not _derive(full, table["derived"]):
        return None
    try:
        before, layer, after = (
            {
                name: tuple(_length(full, length) for length in lengths)
                for name, lengths, condition in table[part]
                if _holds(flags, condition)
            }
            for part in ("before", "layer", "after")
        )
        layers = _length(full, table["layers"])
    except _UnusualError:
        return None
    within = {name.format(number): shape for number in range(layers) for name, shape in layer.items()}
    return {**before, **within, **after}


class _UnusualError(Exception):
    """A size or a flag that is not what it should be."""


def _length(config: Mapping[str, Any], product: str) -> int:
    """``2*intermediate_size``, of this configuration."""
    factors: list[Any] = [int(part) if part.isdigit() else config.get(part) for part in product.split("*")]
    if not all(_positive(factor) for factor in factors):
        raise _UnusualError
    return math.prod(factors)


def _holds(flags: Mapping[str, bool], condition: str) -> bool:
    """``attention_bias`` or ``!tie_word_embeddings``; nothing always holds."""
    key = condition.removeprefix("!")
    if key and key not in flags:
        raise _UnusualError
    return not key or flags[key] != condition.startswith("!")


def _derive(config: dict[str, Any], derived: Sequence[str]) -> bool:
    """Compute what is null or nothing, as the class does; False if heads do not share the width evenly."""
    hidden: Any = config.get("hidden_size", config.get("n_embd"))
    heads: Any = config.get("num_attention_heads", config.get("n_head"))
    if not (_positive(hidden) and _positive(heads)) or hidden % heads:
        return False
    if "head_dim" in derived and config.get("head_dim") is None:
        config["head_dim"] = hidden // heads
    if "n_inner" in derived and config.get("n_inner") is None:
        config["n_inner"] = 4 * hidden
    # Of a class whose defaults are not known, a missing number of groups may be any.
    if "num_key_value_heads" in derived and config.get("num_key_value_heads", 0) is None:
        config["num_key_value_heads"] = heads
    groups = config.get("num_key_value_heads", heads)
    return _positive(groups) and heads % groups == 0


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
