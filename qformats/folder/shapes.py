"""Names and shapes of the commonest decoders, from config.json alone.

Transformers' own class gives the same, but to import it takes 4 seconds of a processor (torch 2.13, Transformers 5.23),
and to build it 0.05. The tables are recorded from those classes, and compared with them in
tests/folder/test_outline_shapes.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qformats.folder.config_class import layout, recorded

__all__ = ["MOST_TENSORS", "expanded", "known_shapes"]

MOST_TENSORS = 1 << 20
"""An absurd number of layers or experts must not take forever; 61 layers of 384 experts have 70,000 tensors."""


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
    return expanded(known.completed(config) if known is not None else config, table)


def expanded(config: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, tuple[int, ...]] | None:
    """Shapes of the tensors of a layout, for a configuration that says all that matters; None if it is unusual.

    Parameters
    ----------
    config : mapping
        ``config.json``, with the defaults of its class.
    table : mapping
        Entries before, of, and after the layers: a name with places for the layer and for what is repeated in it, the
        lengths of its shape, the flag that it depends on, what says how often it is repeated, and which layers have it.
    """
    full = dict(config)
    usual: Mapping[str, Any] = table["as usual"]
    # Nothing, an empty list and false are alike to the classes.
    if any((full.get(key, value) or None) != (value or None) for key, value in usual.items()):
        return None
    parts: dict[str, list[Sequence[Any]]] = {part: table[part] for part in ("before", "layer", "after")}
    named = {entry[2].removeprefix("!") for entries in parts.values() for entry in entries} - {""}
    flags = {key: full[key] for key in named if key in full}
    if not all(isinstance(flag, bool) for flag in flags.values()) or not _derive(full, table["derived"]):
        return None
    try:
        layers = _length(full, table["layers"])
        counts = [_length(full, entry[3]) for entry in parts["layer"] if len(entry) > 3 and entry[3]]
        if layers * (len(parts["layer"]) + sum(counts)) > MOST_TENSORS:
            return None
        return {
            name: shape
            for part, entries in parts.items()
            for layer in range(layers if part == "layer" else 1)
            for name, shape in _entries(full, flags, entries, layer)
        }
    except _UnusualError:
        return None


def _entries(
    config: Mapping[str, Any], flags: Mapping[str, bool], entries: Sequence[Sequence[Any]], layer: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, lengths, condition, *more in entries:
        count, where = (*more, "", "")[:2]
        if _holds(flags, condition) and _within(config, where, layer):
            shape = tuple(_length(config, length) for length in lengths)
            for number in range(_length(config, count) if count else 1):
                yield name.format(layer, number), shape


class _UnusualError(Exception):
    """A size or a flag that is not what it should be."""


def _length(config: Mapping[str, Any], spelt: str) -> int:
    """``2*intermediate_size``, of this configuration; sums too."""
    total = 0
    for product in spelt.split("+"):
        factors: list[Any] = [
            int(part) if part.isdigit() else config.get(part) for part in product.split("*")
        ]
        if not all(_positive(factor) for factor in factors):
            raise _UnusualError
        total += math.prod(factors)
    return total


def _holds(flags: Mapping[str, bool], condition: str) -> bool:
    """``attention_bias`` or ``!tie_word_embeddings``; nothing always holds."""
    key = condition.removeprefix("!")
    if key and key not in flags:
        raise _UnusualError
    return not key or flags[key] != condition.startswith("!")


def _within(config: Mapping[str, Any], where: str, layer: int) -> bool:
    """``<first_k_dense_replace`` or ``>=first_k_dense_replace``; nothing is every layer."""
    if not where:
        return True
    limit = config.get(where.lstrip("<>="))
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
        raise _UnusualError
    return layer < limit if where.startswith("<") else layer >= limit


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
