"""Weights that are finite but too large for a format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qformats.errors import NonFiniteError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["too_large"]


def too_large(found: str, weight: Tensor) -> NonFiniteError:
    """Error for finite weights that a format cannot hold, with the largest one and where it is.

    Parameters
    ----------
    found : str
        What does not fit, such as ``"3 of 80 blocks need a scale beyond f16"``.
    weight : Tensor
        The weights, any shape.

    Examples
    --------
    >>> import torch
    >>> from qformats.kernels.dense import too_large
    >>> print(too_large("1 of 2 blocks need a scale beyond f16", torch.tensor([1.0, 1e9])))
    1 of 2 blocks need a scale beyond f16; the largest weight is 1e+09 at index 1. Keep this tensor in bf16 or
    f32 (--tensor-type 'NAME=bf16').
    """
    flat = weight.flatten()
    index = int(flat.abs().argmax())
    return NonFiniteError(
        f"{found}; the largest weight is {float(flat[index]):g} at index {index}",
        "keep this tensor in bf16 or f32 (--tensor-type 'NAME=bf16')",
    )
