"""Layers whose weight the code of a model takes into its own hands, instead of calling the layer."""

from __future__ import annotations

import inspect
import re
from functools import lru_cache
from typing import Any

from qformats.runtime.names import tied_names

__all__ = ["reads_weight"]


def reads_weight(model: Any, owner: str) -> str | None:
    """Class whose code reads the weight of a layer, or of one tied to it; None if all of them only call it.

    Mamba multiplies by ``dt_proj.weight`` and casts to the dtype of ``lm_head.weight``: packed bytes would be taken for
    numbers. Where a weight lies (``weight.device``) is asked by many and harmless.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    owner : str
        Name of the layer in it.

    Examples
    --------
    >>> from transformers import MambaConfig, MambaForCausalLM
    >>> from qformats.runtime.read_weights import reads_weight
    >>> sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64}
    >>> model = MambaForCausalLM(MambaConfig(**sizes))
    >>> reads_weight(model, "backbone.layers.0.mixer.dt_proj"), reads_weight(model, "backbone.layers.0.mixer.in_proj")
    ('MambaMixer', None)
    """
    weight = f"{owner}.weight"
    twins = [name for name, home in tied_names(model).items() if home == weight]
    for name in (weight, *twins):
        holder, _, layer = name.removesuffix(".weight").rpartition(".")
        kind: Any = type(model.get_submodule(holder))
        # BLOOM's code reads slices of weights only if it is told to repeat the order of sums in training.
        if getattr(model.get_submodule(holder), "slow_but_exact", None) is not False and _reads(kind, layer):
            return str(kind.__name__)
    return None


@lru_cache(maxsize=4096)
def _reads(kind: type[object], layer: str) -> bool:
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):
        # Made by a program; nothing is known of it.
        return False
    return re.search(rf"\bself\.{re.escape(layer)}\.weight\b(?!\.device)", source) is not None
