"""Launches of the kernels for a step of one token; see :mod:`qformats.kernels.triton_step`."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from qformats.kernels.launch import current
from qformats.kernels.scratch import counters
from qformats.kernels.tiles import programs
from qformats.kernels.triton_step import (
    attention_kernel,
    gate_kernel,
    norm_kernel,
    rotary_kernel,
    store_kernel,
)

__all__ = ["GATES", "attention", "gated", "norm", "rotary", "store"]

GATES = {"silu": 0, "gelu_tanh": 1}
"""Activations that :func:`gated` computes."""
_TOKENS = 32
"""Tokens that a program of the attention reads at a time."""
_NORM_WIDTH = 1 << 15
"""Columns that one program normalises."""


def _room(count: int, least: int = 1) -> int:
    size: int = triton.next_power_of_2(max(least, count))
    return size


def _lined(states: Tensor) -> Tensor:
    """With a contiguous last dimension, which is all that the kernels ask of heads."""
    return states if states.stride(-1) == 1 else states.contiguous()


def norm(x: Tensor, weight: Tensor, eps: float, *, plus_one: bool = False, late: bool = True) -> Tensor:
    """Root mean square normalisation, computed in float32.

    Parameters
    ----------
    x : Tensor
        ``(..., K)``, contiguous, K up to 32768.
    weight : Tensor
        ``(K,)``.
    eps : float
        Added to the mean of squares.
    plus_one : bool
        Whether one is added to the weight.
    late : bool
        Whether the normalised values are rounded to the dtype of `x` before the weight multiplies them.
    """
    columns = x.shape[-1]
    out = torch.empty_like(x)
    width = _room(columns)
    kernel: Any = norm_kernel
    with current(x.device):
        kernel[(x.numel() // columns,)](
            x, weight, out, columns, eps, plus_one, late, width, num_warps=max(1, min(16, width // 256))
        )
    return out


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys of one token, whose heads' halves are the two coordinates.

    Parameters
    ----------
    q, k : Tensor
        ``(batch, heads, 1, D)``.
    cos, sin : Tensor
        ``(batch or 1, 1, D)``.

    Returns
    -------
    tuple of Tensor
        Both, contiguous.
    """
    q, k = _lined(q), _lined(k)
    batch, heads, _, width = q.shape
    kv_heads, half = k.shape[1], width // 2
    cos, sin = cos.contiguous(), sin.contiguous()
    outs = (
        torch.empty((batch, heads, 1, width), dtype=q.dtype, device=q.device),
        torch.empty((batch, kv_heads, 1, width), dtype=k.dtype, device=k.device),
    )
    kernel: Any = rotary_kernel
    with current(q.device):
        kernel[(batch, heads + kv_heads)](
            q,
            k,
            cos,
            sin,
            *outs,
            heads,
            kv_heads,
            half,
            q.stride(0),
            q.stride(1),
            k.stride(0),
            k.stride(1),
            width if cos.shape[0] > 1 else 0,
            _room(half),
            num_warps=1,
        )
    return outs


def store(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, length: Tensor) -> None:
    """Put keys and values of one token into a cache.

    Parameters
    ----------
    k, v : Tensor
        ``(batch, heads, 1, D)``; the widths of both may differ.
    keys, values : Tensor
        ``(batch, heads, room, D)``, contiguous.
    length : Tensor
        int64, ``(1,)``: place of the token.
    """
    k, v = _lined(k), _lined(v)
    batch, heads, room, k_width = keys.shape
    v_width = values.shape[-1]
    kernel: Any = store_kernel
    with current(k.device):
        kernel[(batch, heads)](
            k,
            v,
            keys,
            values,
            length,
            heads,
            room,
            k_width,
            v_width,
            k.stride(0),
            k.stride(1),
            v.stride(0),
            v.stride(1),
            _room(k_width),
            _room(v_width),
            num_warps=1,
        )


def attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    pads: Tensor,
    length: Tensor,
    *,
    scaling: float,
    window: int = 0,
    cap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention of the newest token of each sequence to itself and those before it.

    Parameters
    ----------
    q : Tensor
        ``(batch, heads, 1, D)``.
    keys, values : Tensor
        ``(batch, kv heads, room, D)``; the newest token's are there already. Up to 16 heads share one.
    pads : Tensor
        int64, ``(batch,)``: places at the front of each sequence that are not seen.
    length : Tensor
        int64, ``(1,)``: place of the newest token.
    scaling : float
        Factor of the products of queries and keys.
    window : int
        How many tokens are seen, the newest one included; 0 for all.
    cap : float, optional
        Soft bound of the scores.
    sinks : Tensor, optional
        ``(heads,)``: a score of each head that takes its share and gives nothing.

    Returns
    -------
    Tensor
        ``(batch, 1, heads, D of the values)``, contiguous.
    """
    q, keys, values = _lined(q), keys.contiguous(), values.contiguous()
    batch, heads = q.shape[:2]
    kv_heads, room, k_width = keys.shape[1:]
    v_width = values.shape[-1]
    v_room = _room(v_width, 16)
    split = max(1, min(32, -(-room // (2 * _TOKENS)), programs(q.device) // (batch * kv_heads)))
    out = torch.empty((batch, 1, heads, v_width), dtype=q.dtype, device=q.device)
    partial = torch.empty(batch * kv_heads * split * 16 * (v_room + 2), dtype=torch.float32, device=q.device)
    kernel: Any = attention_kernel
    with current(q.device):
        kernel[(kv_heads, split, batch)](
            q,
            keys,
            values,
            pads,
            length,
            q if sinks is None else sinks,
            out,
            partial,
            counters(batch * kv_heads, q.device),
            scaling,
            cap or 1.0,
            heads,
            kv_heads,
            room,
            q.stride(0),
            q.stride(1),
            window,
            k_width,
            v_width,
            _room(k_width, 16),
            v_room,
            heads // kv_heads,
            cap is not None,
            sinks is not None,
            split,
            _TOKENS,
            num_warps=4,
        )
    return out


def gated(gate: Tensor, up: Tensor, kind: str) -> Tensor:
    """``act(gate) * up``.

    Parameters
    ----------
    gate, up : Tensor
        Of one shape, contiguous.
    kind : str
        One of :data:`GATES`.
    """
    out = torch.empty_like(up)
    width = 1024 if up.device.type == "cuda" else _room(up.numel())
    kernel: Any = gate_kernel
    with current(up.device):
        kernel[(-(-up.numel() // width),)](gate, up, out, up.numel(), GATES[kind], width, num_warps=4)
    return out
