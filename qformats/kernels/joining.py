"""Weights that are multiplied with the same activations, as the projections of an attention: one launch does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qformats.kernels.form import DeviceWeight

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MOST", "join", "lay_together"]

MOST = 3
"""Weights that one launch multiplies with: queries, keys and values."""
_SHARED = ("table", "order")
"""Tensors that do not belong to rows."""


def join(weights: Sequence[DeviceWeight]) -> tuple[DeviceWeight, list[DeviceWeight]] | None:
    """One weight of the rows of several, and each of them as a part of it; None if they are not of one kind.

    Parameters
    ----------
    weights : sequence of DeviceWeight
        Two or three on one device, which may differ in rows only.

    Examples
    --------
    >>> import torch, qformats
    >>> from qformats.kernels.device import arrange, restore
    >>> from qformats.kernels.joining import join
    >>> weights = [qformats.quantize(torch.randn(rows, 128), "gguf:q4_0") for rows in (16, 8)]
    >>> whole, parts = join([arrange(weight) for weight in weights])
    >>> whole.form.rows, torch.equal(restore(parts[1]).codes, weights[1].codes)
    (24, True)
    """
    return lay_together(weights) if 1 < len(weights) <= MOST else None


def lay_together(weights: Sequence[DeviceWeight]) -> tuple[DeviceWeight, list[DeviceWeight]] | None:
    """As :func:`join`, for any number of weights."""
    import torch

    first = weights[0]
    if any(not _alike(weight, first) for weight in weights):
        return None
    rows = [weight.form.rows for weight in weights]
    total = sum(rows)

    def parts(tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        whole = torch.cat(list(tensors), 1)
        return whole, list(torch.split(whole, rows, 1))

    planes = [parts([weight.planes[n] for weight in weights]) for n in range(len(first.planes))]
    beside: dict[str, tuple[Any, list[Any]]] = {}
    for name, part in first.beside.items():
        if part is None or name in _SHARED:
            beside[name] = part, [part] * len(weights)
        else:
            beside[name] = parts([getattr(weight, name) for weight in weights])
    whole = first._replace(
        planes=tuple(plane[0] for plane in planes),
        form=first.form._replace(rows=total),
        **{name: each[0] for name, each in beside.items()},
    )
    return whole, [
        weight._replace(
            planes=tuple(plane[1][n] for plane in planes),
            form=weight.form._replace(line=total),
            **{name: each[1][n] for name, each in beside.items()},
        )
        for n, weight in enumerate(weights)
    ]


def _alike(weight: DeviceWeight, first: DeviceWeight) -> bool:
    import torch

    if weight.form._replace(rows=first.form.rows) != first.form or weight.form.line:
        return False
    for name, part in first.beside.items():
        other = getattr(weight, name)
        if part is None or other is None:
            if part is not other:
                return False
        elif part.dtype != other.dtype or part.device != other.device:
            return False
        elif name in _SHARED and not torch.equal(part, other):
            return False
    return True
