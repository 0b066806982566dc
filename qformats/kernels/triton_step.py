"""What surrounds the products of one token: normalisation, rotary embedding, keys and values, attention, gates.

A step of one token has as many of these small operations as it has products. Each is one launch here, where
Transformers' own code takes two to ten.
"""

# ruff: noqa: ANN001, ANN201, ANN202 (arguments of a kernel are pointers and numbers of the device)

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["attention_kernel", "gate_kernel", "norm_kernel", "rotary_kernel", "store_kernel"]


@triton.jit
def norm_kernel(
    x_ptr, weight_ptr, out_ptr, K, eps, PLUS_ONE: tl.constexpr, LATE: tl.constexpr, WIDTH: tl.constexpr
):
    """``x / sqrt(mean(x ** 2) + eps) * weight`` of one row, in float32.

    `PLUS_ONE` adds one to the weight. `LATE` rounds to the dtype of `out` before the weight is multiplied, too.
    """
    at = tl.program_id(0).to(tl.int64) * K
    column = tl.arange(0, WIDTH)
    inside = column < K
    x = tl.load(x_ptr + at + column, mask=inside, other=0.0).to(tl.float32)
    x = x * tl.rsqrt(tl.sum(x * x) / K + eps)
    if LATE:
        x = x.to(out_ptr.dtype.element_ty).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    if PLUS_ONE:
        weight += 1.0
    tl.store(out_ptr + at + column, (x * weight).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _rotated(x_ptr, at, cos, sin, cos_high, sin_high, out_ptr, to, half, HALF: tl.constexpr):
    column = tl.arange(0, HALF)
    inside = column < half
    low = tl.load(x_ptr + at + column, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(x_ptr + at + half + column, mask=inside, other=0.0).to(tl.float32)
    kind = out_ptr.dtype.element_ty
    tl.store(out_ptr + to + column, (low * cos - high * sin).to(kind), mask=inside)
    tl.store(out_ptr + to + half + column, (high * cos_high + low * sin_high).to(kind), mask=inside)


@triton.jit
def rotary_kernel(
    q_ptr,
    k_ptr,
    cos_ptr,
    sin_ptr,
    q_out_ptr,
    k_out_ptr,
    heads,
    kv_heads,
    half,
    q_batch,
    q_head,
    k_batch,
    k_head,
    angle_batch,
    HALF: tl.constexpr,
):
    """Rotate one head of the queries or the keys of one token: halves of a head are the two coordinates."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    column = tl.arange(0, HALF)
    inside = column < half
    angles = row * angle_batch + column
    cos = tl.load(cos_ptr + angles, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + angles, mask=inside, other=0.0).to(tl.float32)
    cos_high = tl.load(cos_ptr + angles + half, mask=inside, other=0.0).to(tl.float32)
    sin_high = tl.load(sin_ptr + angles + half, mask=inside, other=0.0).to(tl.float32)
    if head < heads:
        at = row * q_batch + head * q_head
        _rotated(
            q_ptr, at, cos, sin, cos_high, sin_high, q_out_ptr, (row * heads + head) * 2 * half, half, HALF
        )
    else:
        place = head - heads
        at = row * k_batch + place * k_head
        to = (row * kv_heads + place) * 2 * half
        _rotated(k_ptr, at, cos, sin, cos_high, sin_high, k_out_ptr, to, half, HALF)


@triton.jit
def store_kernel(
    k_ptr,
    v_ptr,
    keys_ptr,
    values_ptr,
    length_ptr,
    heads,
    room,
    k_width,
    v_width,
    k_batch,
    k_head,
    v_batch,
    v_head,
    K_WIDTH: tl.constexpr,
    V_WIDTH: tl.constexpr,
):
    """Put the key and the value of one head of a new token behind those of the tokens before it."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    position = tl.load(length_ptr)
    line = (row * heads + head).to(tl.int64) * room + position
    column = tl.arange(0, K_WIDTH)
    inside = column < k_width
    key = tl.load(k_ptr + row * k_batch + head * k_head + column, mask=inside, other=0.0)
    tl.store(keys_ptr + line * k_width + column, key, mask=inside)
    column = tl.arange(0, V_WIDTH)
    inside = column < v_width
    value = tl.load(v_ptr + row * v_batch + head * v_head + column, mask=inside, other=0.0)
    tl.store(values_ptr + line * v_width + column, value, mask=inside)


@triton.jit
def _soft(scores, cap):
    # tanh by the exponential function, which every backend has.
    ratio = scores / cap
    return cap * (1.0 - 2.0 / (tl.exp(tl.minimum(2.0 * ratio, 80.0)) + 1.0))


@triton.jit
def attention_kernel(
    q_ptr,
    keys_ptr,
    values_ptr,
    pad_ptr,
    length_ptr,
    sink_ptr,
    out_ptr,
    partial_ptr,
    arrived_ptr,
    scaling,
    cap,
    heads,
    kv_heads,
    room,
    q_batch,
    q_head,
    window,
    K_WIDTH: tl.constexpr,
    V_WIDTH: tl.constexpr,
    K_ROOM: tl.constexpr,
    V_ROOM: tl.constexpr,
    SHARED: tl.constexpr,
    CAPPED: tl.constexpr,
    SINKS: tl.constexpr,
    SPLIT: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Attention of the newest token of one sequence: `SHARED` heads of queries to the head of keys they share.

    `SPLIT` programs share the tokens; the last one to arrive adds up what all have left in ``partial``, always in the
    same order. Tokens before ``pad``, and those that a window of `window` tokens (0: none) has left behind, are not
    seen. ``length`` is the place of the newest token.
    """
    head = tl.program_id(0)
    split = tl.program_id(1)
    row = tl.program_id(2)
    dtype: tl.constexpr = q_ptr.dtype.element_ty
    stop = (tl.load(length_ptr) + 1).to(tl.int32)
    start = tl.load(pad_ptr + row).to(tl.int32)
    if window > 0:
        start = tl.maximum(start, stop - window)
    count = tl.cdiv(tl.cdiv(stop - start, SPLIT), TOKENS) * TOKENS
    begin = start + split * count
    end = tl.minimum(stop, begin + count)

    # The tensor cores take sixteen rows at least; those beyond the heads that share keys repeat the last one.
    member = tl.arange(0, 16)
    query = head * SHARED + tl.minimum(member, SHARED - 1)
    wide = tl.arange(0, K_ROOM)
    q = tl.load(
        q_ptr + row * q_batch + query[:, None] * q_head + wide[None, :],
        mask=(wide < K_WIDTH)[None, :],
        other=0.0,
    )
    deep = tl.arange(0, V_ROOM)
    top = tl.full((16,), -float("inf"), dtype=tl.float32)
    weight = tl.zeros((16,), dtype=tl.float32)
    total = tl.zeros((16, V_ROOM), dtype=tl.float32)
    line = (row * kv_heads + head).to(tl.int64) * room
    for first in range(begin, end, TOKENS):
        token = first + tl.arange(0, TOKENS)
        seen = token < end
        key = tl.load(
            keys_ptr + (line + token)[:, None] * K_WIDTH + wide[None, :],
            mask=seen[:, None] & (wide < K_WIDTH)[None, :],
            other=0.0,
        )
        scores = tl.dot(q, tl.trans(key), input_precision="ieee") * scaling
        if CAPPED:
            scores = _soft(scores, cap)
        scores = tl.where(seen[None, :], scores, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        kept = tl.exp(top - higher)
        share = tl.exp(scores - higher[:, None])
        weight = weight * kept + tl.sum(share, 1)
        value = tl.load(
            values_ptr + (line + token)[:, None] * V_WIDTH + deep[None, :],
            mask=seen[:, None] & (deep < V_WIDTH)[None, :],
            other=0.0,
        )
        total = total * kept[:, None] + tl.dot(share.to(dtype), value, input_precision="ieee")
        top = higher
    last = True
    if SPLIT > 1:
        group = row * kv_heads + head
        each: tl.constexpr = 16 * (V_ROOM + 2)
        base = partial_ptr + group.to(tl.int64) * (SPLIT * each)
        mine = base + split * each
        tl.store(mine + member, top)
        tl.store(mine + 16 + member, weight)
        tl.store(mine + 32 + member[:, None] * V_ROOM + deep[None, :], total)
        # What every thread of the program has stored comes before the count, and the count before the reads below.
        tl.debug_barrier()
        last = tl.atomic_add(arrived_ptr + group, 1, sem="acq_rel") == SPLIT - 1
        if last:
            tl.debug_barrier()
            top = tl.full((16,), -float("inf"), dtype=tl.float32)
            weight = tl.zeros((16,), dtype=tl.float32)
            total = tl.zeros((16, V_ROOM), dtype=tl.float32)
            for other in range(SPLIT):
                theirs = base + other * each
                high = tl.load(theirs + member, cache_modifier=".cg")
                if tl.max(high) > -float("inf"):
                    higher = tl.maximum(top, high)
                    kept = tl.exp(top - higher)
                    factor = tl.exp(high - higher)
                    part = tl.load(theirs + 16 + member, cache_modifier=".cg")
                    weight = weight * kept + part * factor
                    spread = theirs + 32 + member[:, None] * V_ROOM + deep[None, :]
                    total = total * kept[:, None] + tl.load(spread, cache_modifier=".cg") * factor[:, None]
                    top = higher
            # The next launch finds the count as this one did.
            tl.store(arrived_ptr + group, 0)
    if last:
        if SINKS:
            sink = tl.load(sink_ptr + query).to(tl.float32)
            higher = tl.maximum(top, sink)
            kept = tl.exp(top - higher)
            weight = weight * kept + tl.exp(sink - higher)
            total = total * kept[:, None]
        total = total / weight[:, None]
        to = (row * heads + query).to(tl.int64) * V_WIDTH
        chosen = (member < SHARED)[:, None] & (deep < V_WIDTH)[None, :]
        tl.store(out_ptr + to[:, None] + deep[None, :], total.to(dtype), mask=chosen)


@triton.jit
def gate_kernel(gate_ptr, up_ptr, out_ptr, count, KIND: tl.constexpr, WIDTH: tl.constexpr):
    """``act(gate) * up``: `KIND` 0 is SiLU, 1 is GELU by its tanh approximation; in float32, rounded once."""
    place = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    inside = place < count
    gate = tl.load(gate_ptr + place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + place, mask=inside, other=0.0).to(tl.float32)
    if KIND == 0:
        value = gate / (1.0 + tl.exp(tl.minimum(-gate, 80.0)))
    else:
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        value = gate * (1.0 - 1.0 / (tl.exp(tl.minimum(2.0 * inner, 80.0)) + 1.0))
    tl.store(out_ptr + place, (value * up).to(out_ptr.dtype.element_ty), mask=inside)
