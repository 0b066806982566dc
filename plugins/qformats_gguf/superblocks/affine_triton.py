"""The search for a scale and a minimum on a GPU: q2_k, q4_k and q5_k, with the bytes of the compiled one.

Every lane does to one sub-block what C does to it, in the same order and with the same roundings: sums go from the
first element to the last, nothing is fused, divisions and roots are rounded once. Elements are read again in each pass;
they stay in the first-level cache. Source: llama.cpp:ggml/src/ggml-quants.c (``make_qkx2_quants`` and its callers).

This module imports Triton. Import it inside functions.
"""

# ruff: noqa: ANN001, ANN202 (arguments of a kernel are pointers and numbers of the device)

from __future__ import annotations

import numpy as np
import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]

from qformats_gguf.superblocks.layout import SuperLayout

__all__ = ["search"]

_LANES = 128
"""Sub-blocks of a program."""


@triton.jit  # type: ignore[untyped-decorator, misc, unused-ignore]
def _nearest(value):  # type: ignore[no-untyped-def]
    """``nearest_int``; what is no number becomes 0, as on x86."""
    bits = (value + 12582912.0).to(tl.int32, bitcast=True)
    return tl.where(value == value, (bits & 0x007FFFFF) - 0x00400000, 0)


@triton.jit  # type: ignore[untyped-decorator, misc, unused-ignore]
def _clamped(value, top):  # type: ignore[no-untyped-def]
    return tl.maximum(tl.minimum(_nearest(value), top), 0)


@triton.jit  # type: ignore[untyped-decorator, misc, unused-ignore]
def _load(source, lane, inside, i, SUB: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.load(source + lane * SUB + i, mask=inside, other=0.0).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator, misc, unused-ignore]
def _error(  # type: ignore[no-untyped-def]
    source, lane, inside, mean, inverse, low, top, scale, minimum, SUB: tl.constexpr, ABSOLUTE: tl.constexpr
):
    """Weighted error of the levels that `inverse` and `low` choose, under a scale and a minimum."""
    error = tl.zeros_like(mean)
    for i in range(SUB):
        x = _load(source, lane, inside, i, SUB)
        weight = mean + tl.abs(x)
        level = _clamped(inverse * (x - low), top).to(tl.float32)
        miss = (scale * level + minimum) - x
        if ABSOLUTE:
            error += weight * tl.abs(miss)
        else:
            error += weight * (miss * miss)
    return error


@triton.jit  # type: ignore[untyped-decorator, misc, unused-ignore]
def _own(values, SUPERS: tl.constexpr, PER: tl.constexpr, TOP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Whole numbers of scales or minima, and their scale for each lane."""
    lanes: tl.constexpr = SUPERS * PER
    positive = tl.where(values > 0, values, 0.0)
    largest = tl.max(tl.reshape(positive, (SUPERS, PER)), axis=1)
    largest = tl.reshape(tl.broadcast_to(largest[:, None], (SUPERS, PER)), (lanes,))
    live = largest > 0
    inverse = tl.where(live, tl.div_rn(tl.full((lanes,), TOP, tl.float32), largest), 0.0)
    code = _nearest(inverse * values) & 255
    if TOP >= 63:
        code = tl.minimum(code, 63)
    outer = tl.where(live, tl.div_rn(largest, tl.full((lanes,), TOP, tl.float32)), 0.0)
    return code, outer.to(tl.float16)


@triton.jit  # type: ignore[untyped-decorator, misc, unused-ignore]
def _search_kernel(  # type: ignore[no-untyped-def]
    source,
    reaches,
    codes,
    halves,
    scales,
    minima,
    total,
    steps,
    top,
    SUB: tl.constexpr,
    PER: tl.constexpr,
    SUPERS: tl.constexpr,
    SUB_TOP: tl.constexpr,
    ROOT: tl.constexpr,
    ABSOLUTE: tl.constexpr,
):
    lanes: tl.constexpr = SUPERS * PER
    lane = tl.program_id(0).to(tl.int64) * lanes + tl.arange(0, lanes)
    inside = lane < total
    mean = tl.zeros((lanes,), tl.float32)
    if ROOT:
        for i in range(SUB):
            x = _load(source, lane, inside, i, SUB)
            mean += x * x
        mean = tl.sqrt_rn(tl.div_rn(mean, tl.full((lanes,), SUB, tl.float32)))
    x = _load(source, lane, inside, 0, SUB)
    low, high = x, x
    total_weight = mean + tl.abs(x)
    pull = total_weight * x
    for i in range(1, SUB):
        x = _load(source, lane, inside, i, SUB)
        weight = mean + tl.abs(x)
        low = tl.where(x < low, x, low)
        high = tl.where(x > high, x, high)
        total_weight += weight
        pull += weight * x
    low = tl.where(low > 0, 0.0, low)
    # Lanes of one value, and that not positive, have no range to search.
    live = high > low
    top_float = tl.zeros((lanes,), tl.float32) + top
    # C keeps looking in the range as it was found, from the best minimum so far.
    inverse = tl.div_rn(top_float, high - low)
    scale = tl.div_rn(tl.full((lanes,), 1.0, tl.float32), inverse)
    chosen, base = inverse, low
    best = _error(source, lane, inside, mean, inverse, low, top, scale, low, SUB, ABSOLUTE)
    for k in range(steps):
        reach = tl.zeros((lanes,), tl.float32) + tl.load(reaches + k)
        inverse = tl.div_rn(reach, high - low)
        flat, square = tl.zeros((lanes,), tl.float32), tl.zeros((lanes,), tl.float32)
        mixed = tl.zeros((lanes,), tl.float32)
        for i in range(SUB):
            x = _load(source, lane, inside, i, SUB)
            weight = mean + tl.abs(x)
            level = _clamped(inverse * (x - low), top).to(tl.float32)
            weighed = weight * level
            flat += weighed
            square += weighed * level
            mixed += weighed * x
        determinant = total_weight * square - flat * flat
        fitted = tl.div_rn(total_weight * mixed - pull * flat, determinant)
        shift = tl.div_rn(square * pull - flat * mixed, determinant)
        positive = shift > 0
        trial = tl.where(positive, tl.div_rn(mixed, square), fitted)
        minimum = tl.where(positive, 0.0, shift)
        error = _error(source, lane, inside, mean, inverse, low, top, trial, minimum, SUB, ABSOLUTE)
        won = (error < best) & (determinant > 0) & live
        best = tl.where(won, error, best)
        chosen = tl.where(won, inverse, chosen)
        base = tl.where(won, low, base)
        scale = tl.where(won, trial, scale)
        low = tl.where(won, minimum, low)
    scale = tl.where(live, scale, 0.0)
    # Codes of lanes without a range are 0.
    chosen, base = tl.where(live, chosen, 0.0), tl.where(live, base, 0.0)
    own_scale, d = _own(scale, SUPERS, PER, SUB_TOP)
    own_minimum, dmin = _own(-low, SUPERS, PER, SUB_TOP)
    if SUB_TOP == 15:
        byte = (own_scale | (own_minimum << 4)) & 255
        own_scale, own_minimum = byte & 15, byte >> 4
    tl.store(scales + lane, own_scale.to(tl.int8), mask=inside)
    tl.store(minima + lane, own_minimum.to(tl.int8), mask=inside)
    # The lanes of a block write the same number.
    tl.store(halves + lane // PER * 2, d, mask=inside)
    tl.store(halves + lane // PER * 2 + 1, dmin, mask=inside)
    step = d.to(tl.float32) * own_scale.to(tl.int8).to(tl.float32)
    shift = dmin.to(tl.float32) * own_minimum.to(tl.int8).to(tl.float32)
    stored = step != 0
    divisor = tl.where(stored, step, 1.0)
    for i in range(SUB):
        x = _load(source, lane, inside, i, SUB)
        code = tl.where(
            stored, _clamped(tl.div_rn(x + shift, divisor), top), _clamped(chosen * (x - base), top)
        )
        tl.store(codes + lane * SUB + i, code.to(tl.uint8), mask=inside)


def search(
    kind: SuperLayout,
    source: torch.Tensor,
    rule: int,
    trials: tuple[float, float],
    steps: int,
    *,
    absolute: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Quantize blocks without importances.

    Parameters
    ----------
    kind : SuperLayout
        The type: one with a minimum.
    source : Tensor
        float32, float16 or bfloat16, ``(blocks, elements of a block)``, finite, contiguous, on a GPU.
    rule, trials, steps, absolute
        As :data:`qformats_gguf.superblocks.search.PLAIN` has them for the type: 1 (weights are magnitudes) or 2 (a
        root mean square is added), first trial and its step, further trials, whether errors are not squared.

    Returns
    -------
    tuple of Tensor
        On the device: codes, uint8, the shape of `source`; float16 ``(blocks, 2)``; int8 ``(blocks, scales of a
        block)`` twice: whole numbers of scales and of minima.
    """
    blocks, device = source.shape[0], source.device
    top = (1 << kind.bits) - 1
    start, step = (np.float32(number) for number in trials)
    reaches = (start + step * np.arange(steps + 1, dtype=np.float32)) + np.float32(top)
    codes = torch.empty(source.shape, dtype=torch.uint8, device=device)
    halves = torch.empty((blocks, 2), dtype=torch.float16, device=device)
    scales = torch.empty((blocks, kind.scales), dtype=torch.int8, device=device)
    minima = torch.empty_like(scales)
    total = blocks * kind.scales
    if total:
        _search_kernel[(triton.cdiv(total, _LANES),)](
            source,
            torch.from_numpy(reaches).to(device),
            *(codes, halves, scales, minima, total, steps + 1, top),
            SUB=kind.sub,
            PER=kind.scales,
            SUPERS=_LANES // kind.scales,
            SUB_TOP=kind.highest,
            ROOT=rule == 2,
            ABSOLUTE=absolute,
            num_warps=4,
            # Each product and each sum is rounded by itself.
            enable_fp_fusion=False,
        )
    return codes, halves, scales, minima
