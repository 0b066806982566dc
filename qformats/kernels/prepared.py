"""A fused linear that is called again and again: what depends on the weight alone is settled once.

Between two tokens a model calls hundreds of these. An operator, its autograd layer, the choice of tiles and Triton's
launcher take half a millisecond of Python each time, ten times as long as the kernel itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qformats.kernels import launch, ops
from qformats.kernels.device import DeviceWeight

__all__ = ["PreparedLinear"]

_KEPT = 64
"""Counts of rows whose launches are remembered: prompts come in all lengths."""


class PreparedLinear:
    """``x @ W.T + bias`` without gradients, on a CUDA device.

    Parameters
    ----------
    weight : DeviceWeight
        On a CUDA device; its tensors stay where they are.

    Examples
    --------
    >>> import torch, qformats
    >>> from qformats.kernels.device import arrange
    >>> from qformats.kernels.prepared import PreparedLinear
    >>> packed = qformats.pack(qformats.quantize(torch.eye(128), "gguf:q8_0"), "gguf:q8_0")
    >>> if torch.cuda.is_available():
    ...     linear = PreparedLinear(arrange(packed.unpack().to("cuda")))
    ...     assert linear(torch.ones(1, 128, device="cuda")).shape == (1, 128)
    """

    def __init__(self, weight: DeviceWeight) -> None:
        self._order = weight.order
        self._weight = weight._replace(order=None)
        self._launches: dict[tuple[Any, ...], launch.Launch] = {}
        self._rows, self._columns = weight.form.rows, weight.form.columns
        self._device = weight.scale.device

    def __reduce__(self) -> Any:
        # A copy of a layer prepares its own.
        return type(None), ()

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``(..., K)`` to ``(..., N)``, in the dtype of `x`."""
        if self._order is not None:
            x = x.index_select(-1, self._order)
        count = x.numel() // self._columns
        key = (count, x.dtype, bias is None, x.data_ptr() & 15)
        ready = self._launches.get(key)
        if (
            ready is None
            or x.shape[-1] != self._columns
            or not x.is_contiguous()
            or x.device != self._device
            or torch.cuda.current_device() != self._device.index
        ):
            return self._first(x, bias, key, count)
        out = torch.empty((*x.shape[:-1], self._rows), dtype=x.dtype, device=self._device)
        ready(x, bias, out)
        return out

    def _first(self, x: Tensor, bias: Tensor | None, key: tuple[Any, ...], count: int) -> Tensor:
        """By the operator, and remembered if a launch can be."""
        out = ops.linear(x, self._weight, bias)
        usual = x.is_contiguous() and 0 < count <= launch.FUSED_ROWS
        if usual and key not in self._launches and launch.uses_launcher(x):
            if len(self._launches) >= _KEPT:
                self._launches.clear()
            with launch.current(x.device):
                self._launches[key] = launch.prepare(x.view(count, self._columns), self._weight, bias)
        return out
