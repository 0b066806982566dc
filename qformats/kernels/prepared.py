"""A fused linear that is called again and again: what depends on the weight alone is settled once.

Between two tokens a model calls hundreds of these. An operator, its autograd layer, the choice of tiles and Triton's
launcher take half a millisecond of Python each time, ten times as long as the kernel itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qformats.kernels import launch, ops
from qformats.kernels.dispatch import uses_humming, uses_triton
from qformats.kernels.form import DeviceWeight
from qformats.kernels.humming import HummingLinear, is_worth, unfit, warn_of
from qformats.kernels.tiles import fused_rows

__all__ = ["JoinedLinear", "PreparedLinear"]

_FEW = 8
"""Rows of activations that are always the shared kernel's."""
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
        self._humming: dict[torch.dtype, HummingLinear | None] = {}
        self._rows, self._columns = weight.form.rows, weight.form.columns
        self._device = weight.scale.device
        self._fused = fused_rows(weight.form)

    def __reduce__(self) -> Any:
        # A copy of a layer prepares its own.
        return type(None), ()

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``(..., K)`` to ``(..., N)``, in the dtype of `x`."""
        if self._order is not None:
            x = x.index_select(-1, self._order)
        count = x.numel() // self._columns
        if count > _FEW and uses_humming(x) and (many := self._many(x, count)) is not None:
            return many(x, bias)
        key = (count, x.dtype, -1 if bias is None else bias.data_ptr() & 15, x.data_ptr() & 15)
        ready = self._launches.get(key)
        if ready is None or not self._usual(x):
            out = ops.linear(x, self._weight, bias)
            if ready is None and self._usual(x):
                self._prepare(x, bias, key, count)
            return out
        out = torch.empty((*x.shape[:-1], self._rows), dtype=x.dtype, device=self._device)
        ready(x, bias, out)
        return out

    def _many(self, x: Tensor, count: int) -> HummingLinear | None:
        """The other kernel, where it is faster and gives the product with the same numbers."""
        if not is_worth(self._weight, count) or x.shape[-1] != self._columns:
            return None
        if x.dtype not in self._humming:
            reason = unfit(self._weight, x.dtype)
            if reason is not None:
                warn_of(reason, self._weight)
            self._humming[x.dtype] = HummingLinear(self._weight) if reason is None else None
        return self._humming[x.dtype]

    def _usual(self, x: Tensor) -> bool:
        return (
            x.shape[-1] == self._columns
            and x.is_contiguous()
            and x.device == self._device
            and (not x.is_cuda or torch._C._cuda_getDevice() == self._device.index)
        )

    def _prepare(
        self, x: Tensor, bias: Tensor | None, key: tuple[Any, ...], count: int, rows: Sequence[int] = ()
    ) -> launch.Launch | None:
        """Remember a launch, if there can be one."""
        if not (0 < count <= self._fused and launch.uses_launcher(x)):
            return None
        if len(self._launches) >= _KEPT:
            self._launches.clear()
        ready = launch.prepare(x.view(count, self._columns), self._weight, bias, rows)
        self._launches[key] = ready
        return ready


class JoinedLinear(PreparedLinear):
    """Products of the same `x` with several weights, in one launch; see :func:`qformats.kernels.joining.join`.

    Parameters
    ----------
    weight : DeviceWeight
        All of them, on a CUDA device.
    rows : sequence of int
        Of each.
    """

    def __init__(self, weight: DeviceWeight, rows: Sequence[int]) -> None:
        super().__init__(weight)
        self._each = tuple(rows)

    def products(self, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, ...] | None:
        """``(..., K)`` to ``(..., rows)`` for each weight, contiguous; None where one launch cannot do it."""
        if self._order is not None:
            x = x.index_select(-1, self._order)
        count = x.numel() // self._columns
        if not (0 < count <= self._fused and self._usual(x) and uses_triton(x)):
            return None
        if count > _FEW and uses_humming(x):
            return None
        key = (count, x.dtype, -1 if bias is None else bias.data_ptr() & 15, x.data_ptr() & 15)
        ready = self._launches.get(key) or self._prepare(x, bias, key, count, self._each)
        if ready is None:
            parts = launch.joined_linear(x.view(count, self._columns), self._weight, bias, self._each)
            return tuple([part.view(*x.shape[:-1], part.shape[1]) for part in parts])
        out = torch.empty(count * self._rows, dtype=x.dtype, device=self._device)
        ready(x, bias, out)
        return launch.divided(out, x.shape[:-1], self._each)
