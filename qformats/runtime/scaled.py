"""Embeddings that multiply the rows they give by a number, as Gemma's do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["gives_scaled_rows", "scale_of"]

_SCALE = "embed_scale"
_known: dict[type[Any], bool] = {}


def gives_scaled_rows(kind: type[Any]) -> bool:
    """Whether modules of a class are embeddings whose rows are multiplied by their ``embed_scale``, and nothing else.

    Two dozen classes of Transformers are; what one computes is tried, since names promise nothing.

    Parameters
    ----------
    kind : type
        Class of a module.

    Examples
    --------
    >>> from torch import nn
    >>> from qformats.runtime.scaled import gives_scaled_rows
    >>> from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
    >>> gives_scaled_rows(Gemma3TextScaledWordEmbedding), gives_scaled_rows(nn.Embedding)
    (True, False)
    """
    if kind not in _known:
        _known[kind] = kind.__bases__ == (nn.Embedding,) and _tried(kind)
    return _known[kind]


def _tried(kind: type[Any]) -> bool:
    table, ids = torch.linspace(-2, 3, 12).view(3, 4), torch.tensor([[2, 0, 1], [1, 1, 2]])
    try:
        with torch.device("cpu"), torch.inference_mode():
            for scale in (0.5, 3.25):
                module = kind(3, 4, 0, **{_SCALE: scale})
                module.weight.copy_(table)
                if not torch.equal(module(ids), table[ids] * scale):
                    return False
    except Exception:
        # Another signature, or another forward: whatever it is, it is not this.
        return False
    return True


def scale_of(module: nn.Module) -> Tensor | float | None:
    """By what an embedding multiplies its rows: a tensor is rounded to the dtype of the rows, a number is not.

    Parameters
    ----------
    module : torch.nn.Module
        An embedding.

    Returns
    -------
    Tensor, float or None
        None where rows are given as they are.
    """
    return getattr(module, _SCALE) if gives_scaled_rows(type(module)) else None
