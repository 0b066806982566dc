"""How many tokens a model takes at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["context_limit"]

_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
"""Its names in configurations."""


def context_limit(config: Mapping[str, Any]) -> int | None:
    """Tokens that a model was made for; ``None`` if its configuration does not tell.

    Some models cannot read more; others can, but get worse.

    >>> context_limit({"n_positions": 1024})
    1024
    """
    found = (config.get(key) for key in _KEYS)
    return next((value for value in found if type(value) is int and value > 0), None)
