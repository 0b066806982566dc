"""Which classes of modules compute what ``torch.nn.Linear`` computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

__all__ = ["is_linear"]

_known: dict[type[Any], bool] = {nn.Linear: True}


def is_linear(kind: type[Any]) -> bool:
    """Whether modules of a class multiply with their weight and add their bias, and nothing else.

    Falcon's do, in a class of their own; routers that derive from ``Linear`` choose experts, too. What a class computes
    is tried, since names promise nothing.

    Parameters
    ----------
    kind : type
        Class of a module.

    Examples
    --------
    >>> from torch import nn
    >>> from qformats.runtime.linears import is_linear
    >>> from transformers.models.falcon.modeling_falcon import FalconLinear
    >>> is_linear(FalconLinear), is_linear(nn.Linear), is_linear(nn.Bilinear)
    (True, True, False)
    """
    if kind not in _known:
        _known[kind] = kind.__bases__ == (nn.Linear,) and _tried(kind)
    return _known[kind]


def _tried(kind: type[Any]) -> bool:
    weight, bias = torch.linspace(-2, 3, 12).view(3, 4), torch.tensor([0.5, -1.0, 2.0])
    try:
        with torch.device("cpu"), torch.inference_mode():
            for biased in (True, False):
                module = kind(4, 3, bias=biased).float()
                module.weight.copy_(weight)
                if biased:
                    module.bias.copy_(bias)
                inputs = torch.linspace(-1, 2, 40).view(2, 5, 4)
                expected = linear(inputs, weight, bias if biased else None)
                found = module(inputs)
                if not isinstance(found, torch.Tensor) or found.shape != expected.shape:
                    return False
                if not torch.allclose(found, expected, rtol=1e-5, atol=1e-5):
                    return False
    except Exception:
        # Another signature, or another forward: whatever it is, it is not this.
        return False
    return True
