"""The shared kernels in plain torch: what they must compute, on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qformats.kernels.device import restore
from qformats.kernels.form import DeviceWeight

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["dequantize", "embedding", "linear"]


def dequantize(weight: DeviceWeight, dtype: torch.dtype) -> Tensor:
    """Value of every element in device order of columns, computed in float32, rounded once; ``(N, K)``."""
    return restore(weight._replace(order=None)).dequantize().to(dtype)


def linear(x: Tensor, weight: DeviceWeight) -> Tensor:
    """``x @ W.T`` in the dtype of `x`; ``(M, K)`` to ``(M, N)``, columns in device order."""
    import torch

    return torch.nn.functional.linear(x, dequantize(weight, x.dtype))


def embedding(ids: Tensor, weight: DeviceWeight, dtype: torch.dtype) -> Tensor:
    """Rows of the weight: ids ``(M,)`` to ``(M, K)``, columns in device order."""
    # Each row has its scale here, whatever rows share it.
    form = weight.form._replace(rows=len(ids), line=0, height=0)
    planes = tuple(plane[:, ids] for plane in weight.planes)
    lines = {
        name: part[:, ids]
        for name, part in weight.beside.items()
        if part is not None and name not in ("table", "order")
    }
    return dequantize(weight._replace(planes=planes, form=form, **lines), dtype)
