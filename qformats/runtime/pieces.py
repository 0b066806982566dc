"""Products with a packed weight on a CPU: piece by piece of its rows, in memory that stays in the cache.

Memory that is new costs more to touch than a weight costs to decode: the output layer of a model of 135 million weights
took 45 ms for each token, of which decoding is 4 (one core of an AMD EPYC, 2026-11-30).
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor
from torch.nn import functional

from qformats.interfaces.packer import PackedTensor
from qformats.interfaces.rows import cut

__all__ = ["multiplied"]

_PIECE = 1 << 20
"""Weights of a piece."""
_own = threading.local()


def _scratch(count: int, dtype: torch.dtype) -> Tensor:
    """Memory for so many weights, the same at each call of a thread."""
    kept: dict[torch.dtype, Tensor] = _own.__dict__.setdefault("kept", {})
    if dtype not in kept or kept[dtype].numel() < count:
        # What inference mode makes cannot be written outside of it.
        with torch.inference_mode(False):
            kept[dtype] = torch.empty(max(count, _PIECE), dtype=dtype)
    return kept[dtype][:count]


@torch.compiler.disable  # type: ignore[untyped-decorator] # compiled code of packers
def multiplied(x: Tensor, packed: PackedTensor) -> Tensor:
    """``x @ W.T`` without gradients: ``(..., K)`` to ``(..., N)``, in the dtype of `x`, all on a CPU.

    Parameters
    ----------
    x : Tensor
        float32, float16 or bfloat16.
    packed : PackedTensor
        ``(N, K)``; values are rounded once to the dtype of `x`.

    Examples
    --------
    >>> import torch, qformats
    >>> from qformats.runtime.pieces import multiplied
    >>> packed = qformats.pack(qformats.quantize(torch.eye(32), "gguf:q8_0"), "gguf:q8_0")
    >>> multiplied(torch.ones(2, 32), packed).shape
    torch.Size([2, 32])
    """
    rows, columns = packed.shape
    step = packed.packer.row_step(packed.shape)
    size = max(step, _PIECE // max(1, columns) // step * step) if step else rows
    flat = x.reshape(-1, columns)
    out = torch.empty((len(flat), rows), dtype=x.dtype)
    for start in range(0, rows, max(1, size)):
        stop = min(rows, start + size)
        values = _scratch((stop - start) * columns, x.dtype).view(stop - start, columns)
        piece = packed if stop - start == rows else cut(packed, start, stop)
        packed.packer.dequantize_into(piece, values)
        out[:, start:stop] = functional.linear(flat, values)
    return out.view(*x.shape[:-1], rows)
