"""Weights of one kind that lie together: one launch multiplies with those that are chosen, as experts of a mixture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qformats.kernels.dispatch import uses_triton
from qformats.kernels.form import DeviceWeight
from qformats.kernels.joining import lay_together

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["alone", "chosen_linear", "stack"]


def stack(weights: Sequence[DeviceWeight]) -> list[DeviceWeight] | None:
    """Let weights lie together, each as a part of larger tensors; None if they are not of one kind.

    Parameters
    ----------
    weights : sequence of DeviceWeight
        On one device.

    Examples
    --------
    >>> import torch, qformats
    >>> from qformats.kernels.device import arrange, restore
    >>> from qformats.kernels.stacking import stack
    >>> weights = [qformats.quantize(torch.randn(8, 128), "gguf:q4_0") for _ in range(3)]
    >>> parts = stack([arrange(weight) for weight in weights])
    >>> torch.equal(restore(parts[2]).codes, weights[2].codes)
    True
    """
    if any(weight.order is not None or weight.form != weights[0].form for weight in weights):
        return None
    found = lay_together(weights)
    return None if found is None else found[1]


def alone(weight: DeviceWeight) -> DeviceWeight:
    """The same weight in tensors of its own."""
    import torch

    def own(part: Tensor) -> Tensor:
        return part.clone(memory_format=torch.contiguous_format)

    beside: dict[str, Any] = {
        name: None if part is None else own(part) for name, part in weight.beside.items()
    }
    planes = tuple(own(plane) for plane in weight.planes)
    return weight._replace(planes=planes, form=weight.form._replace(line=0), **beside)


def chosen_linear(x: Tensor, parts: Sequence[DeviceWeight], chosen: Tensor, share: int) -> Tensor:
    """Products of single rows with one of many weights each.

    Parameters
    ----------
    x : Tensor
        float16, bfloat16 or float32, ``(M, K)``.
    parts : sequence of DeviceWeight
        What :func:`stack` gave, ``(N, K)`` each.
    chosen : Tensor
        int64, ``(M * share,)``: which one, for each product.
    share : int
        How many products take the same row of `x`, one after the other.

    Returns
    -------
    Tensor
        ``(M * share, N)``, in the dtype of `x`.
    """
    import torch

    if uses_triton(x):
        from qformats.kernels import launch

        return launch.chosen_linear(x, parts[0], chosen, share)
    from qformats.kernels import reference

    numbers = chosen.tolist()
    rows = [reference.linear(x[place // share][None], parts[number]) for place, number in enumerate(numbers)]
    return torch.cat(rows)
