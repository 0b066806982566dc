"""Division by a number, rounded once on every device."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["quotient"]


def quotient(values: Tensor, divisor: float) -> Tensor:
    """Divide by a number as IEEE 754 says, in the dtype of the values.

    ``values / 15`` is not that on a GPU: CUDA's kernel multiplies by the reciprocal of a Python number, which rounds
    twice. It divides by tensors.

    Parameters
    ----------
    values : Tensor
        Floats of any shape. Not modified.
    divisor : float
        A number that the dtype of the values holds.

    Examples
    --------
    >>> import torch
    >>> from qformats.numbers import quotient
    >>> quotient(torch.tensor([1.0, 3.0]), 15)
    tensor([0.0667, 0.2000])
    """
    import torch

    # Not Tensor.new_tensor, which makes a number on the CPU of one.
    return values / torch.full((), divisor, dtype=values.dtype, device=values.device)
