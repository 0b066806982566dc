"""Fused linear for few rows of activations: packed words once in, multiplied on the tensor cores."""

# ruff: noqa: ANN001, ANN201, ANN202 (arguments of a kernel are pointers and numbers of the device)

from __future__ import annotations

import triton
import triton.language as tl

from qformats.kernels.triton_decode import (
    divisor,
    factor_of,
    factor_words,
    first_words,
    float_factor,
    float_unit,
    has_floats,
    has_minimum,
    has_table,
    is_quotient,
    is_whole,
    level_of,
    load_lookup,
    of_quad,
    of_strip,
    quads_of_first,
    quads_of_second,
    quads_of_step,
    scale_of,
    second_words,
    table_levels,
)

__all__ = ["linear_kernel"]


@triton.jit
def _activations(x_ptr, m, M, K, quad, lane, STRIP: tl.constexpr, EVEN_K: tl.constexpr):
    column = quad * 128 + STRIP * 32 + lane
    inside = (m < M)[:, None]
    if not EVEN_K:
        inside = inside & (column < K)[None, :]
    return tl.load(x_ptr + m[:, None] * K + column[None, :], mask=inside, other=0.0)


@triton.jit
def _minima(minimum, x, total, ROWS: tl.constexpr):
    """Add ``minimum * sum of x`` over one strip: ``[ROWS, 1]`` and ``[batch, 32]``."""
    if minimum.dtype == x.dtype:
        # The tensor cores add up more cheaply than a reduction over threads does.
        tile = tl.broadcast_to(minimum, (ROWS, 32))
        return tl.dot(tile, tl.trans(x), total, input_precision="ieee")
    else:
        return total + minimum.to(tl.float32) * tl.sum(x.to(tl.float32), axis=1)[None, :]


@triton.jit
def _factored(
    level,
    words,
    scale,
    x,
    total,
    HALF: tl.constexpr,
    GROUP: tl.constexpr,
    INNER: tl.constexpr,
    SCALED: tl.constexpr,
    FAST: tl.constexpr,
):
    """Add the product of the strips of one quad, or of a half of each, whose scales are ``scale * factor``."""
    dtype: tl.constexpr = x[0].dtype
    if SCALED:
        # Levels times factors are whole numbers below 2 ** 13: rounded at most as a weight in that dtype would be.
        value = level[0] * factor_of(words, 0, HALF, GROUP, dtype)
        part = tl.dot(value, tl.trans(x[0]), input_precision="ieee")
        for strip in tl.static_range(1, 4):
            value = level[strip] * factor_of(words, strip, HALF, GROUP, dtype)
            part = tl.dot(value, tl.trans(x[strip]), part, input_precision="ieee")
        total += scale * part
    elif is_whole(INNER):
        for strip in tl.static_range(4):
            part = tl.dot(level[strip], tl.trans(x[strip]), input_precision="ieee")
            total += scale_of(scale, words, strip, HALF, GROUP, INNER, FAST) * part
    else:
        # A row has one outer scale, which its sum is multiplied by.
        for strip in tl.static_range(4):
            part = tl.dot(level[strip], tl.trans(x[strip]), input_precision="ieee")
            total += float_factor(words, strip, HALF, GROUP, INNER, FAST) * part
    return total


@triton.jit
def _weighted(words, x, HALF: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr):
    """Activations of these strips summed up, weighted by the factors of the minima: ``[ROWS, batch]``."""
    dtype: tl.constexpr = x[0].dtype
    width: tl.constexpr = x[0].shape[1]
    tile = tl.broadcast_to(factor_of(words, 0, HALF, GROUP, dtype), (ROWS, width))
    part = tl.dot(tile, tl.trans(x[0]), input_precision="ieee")
    for strip in tl.static_range(1, 4):
        tile = tl.broadcast_to(factor_of(words, strip, HALF, GROUP, dtype), (ROWS, width))
        part = tl.dot(tile, tl.trans(x[strip]), part, input_precision="ieee")
    return part


@triton.jit
def linear_kernel(
    x_ptr,
    low_ptr,
    high_ptr,
    scale_ptr,
    shift_ptr,
    table_ptr,
    lookup_ptr,
    factor_ptr,
    shift_factor_ptr,
    bias_ptr,
    out_ptr,
    partial_ptr,
    arrived_ptr,
    chosen_ptr,
    M,
    N,
    K,
    line,
    groups,
    steps,
    border,
    border2,
    BITS: tl.constexpr,
    MODE: tl.constexpr,
    ZERO: tl.constexpr,
    GROUP: tl.constexpr,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
    FAST: tl.constexpr,
    PAIRED: tl.constexpr,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    EVEN_N: tl.constexpr,
    EVEN_K: tl.constexpr,
    ROWS: tl.constexpr,
    BATCH: tl.constexpr,
    SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
    SHARE: tl.constexpr,
    PARTS: tl.constexpr,
):
    """``out[m, n] = sum over k of x[m, k] * (scale * level + minimum)[n, k] + bias[n]``, sums in float32.

    A program makes `ROWS` columns of ``out`` from one of `SPLIT` ranges of the steps; of the programs that share them,
    the last one to arrive adds up what all have left in ``partial``, always in the same order.
    `OUTER` and `INNER` are as in :func:`~qformats.kernels.triton_dequantize.dequantize_kernel`.
    `SCALED` multiplies levels by float16 scales or factors before the product, where scaling many sums after it costs
    more.
    `line` is how many rows lie together in the planes and parameters: more than N where the weight is a part of them.
    Where `SHARE` is not 0, they hold many weights of N rows, one after the other, and ``chosen`` tells for each row of
    ``out`` which of them it takes; a program makes a part of one row, and so many rows share one of ``x``.
    Where `PARTS` is 2 or 3, the weight is that many of N rows in all, the later ones from row `border` and `border2`
    on, and ``out`` holds their products one after the other, each contiguous.
    """
    tile = tl.program_id(0)
    split = tl.program_id(1)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    row = tile * ROWS + tl.arange(0, ROWS)
    m = tl.program_id(2) * BATCH + tl.arange(0, BATCH)
    inside = (row < N)[:, None]
    # Where the weight's rows lie.
    own = row
    if SHARE > 0:
        slot = tl.program_id(2)
        m = tl.arange(0, BATCH)
        own = row + tl.load(chosen_ptr + slot).to(tl.int32) * N
        x_ptr += (slot // SHARE).to(tl.int64) * K
        out_ptr += slot.to(tl.int64) * N
    # Where a strip has two groups, its halves are multiplied one after the other.
    halves: tl.constexpr = 2 if OUTER > 0 and GROUP == 16 else 1
    columns: tl.constexpr = 32 // halves
    # The levels, stretched as the look-up tables are.
    levels_ptr = table_ptr
    if dtype != tl.float32:
        levels_ptr = table_ptr + (32 if dtype == tl.bfloat16 else 16)
    lookup = None
    if has_table(MODE) and FAST:
        lookup = load_lookup(lookup_ptr, 9 if dtype == tl.bfloat16 else 1)
    total = tl.zeros((ROWS, BATCH), dtype=tl.float32)
    sums = tl.zeros((BATCH,), dtype=tl.float32)
    for step in tl.range(steps * split // SPLIT, steps * (split + 1) // SPLIT, num_stages=STAGES):
        for half in tl.static_range(halves):
            lane = half * columns + tl.arange(0, columns)
            at = own[:, None] * 32 + lane[None, :]
            for place in tl.static_range(quads_of_step(BITS)):
                quad = step * quads_of_step(BITS) + place
                if place % quads_of_first(BITS) == 0:
                    first = first_words(low_ptr, quad, at, inside, line * 32, BITS, EVEN_N)
                if place % quads_of_second(BITS) == 0:
                    second = second_words(first, low_ptr, high_ptr, quad, at, inside, line * 32, BITS, EVEN_N)
                x0 = _activations(x_ptr, m, M, K, quad, lane, 0, EVEN_K)
                x1 = _activations(x_ptr, m, M, K, quad, lane, 1, EVEN_K)
                x2 = _activations(x_ptr, m, M, K, quad, lane, 2, EVEN_K)
                x3 = _activations(x_ptr, m, M, K, quad, lane, 3, EVEN_K)
                x = (x0, x1, x2, x3)
                if has_table(MODE):
                    level = table_levels(first, levels_ptr, lookup, lookup, dtype, FAST, PAIRED)
                else:
                    z0 = scale_ptr
                    if ZERO is None:
                        z0 = of_strip(shift_ptr, own, line, quad, 0, inside, GROUP, groups, EVEN_N, EVEN_K)
                    z1 = z0
                    z2 = z0
                    z3 = z0
                    if ZERO is None and GROUP % 128 != 0:
                        z1 = of_strip(shift_ptr, own, line, quad, 1, inside, GROUP, groups, EVEN_N, EVEN_K)
                        z2 = of_strip(shift_ptr, own, line, quad, 2, inside, GROUP, groups, EVEN_N, EVEN_K)
                        z3 = of_strip(shift_ptr, own, line, quad, 3, inside, GROUP, groups, EVEN_N, EVEN_K)
                    level = (
                        level_of(first, second, z0, BITS, ZERO, 0, place, dtype, FAST, has_floats(MODE)),
                        level_of(first, second, z1, BITS, ZERO, 1, place, dtype, FAST, has_floats(MODE)),
                        level_of(first, second, z2, BITS, ZERO, 2, place, dtype, FAST, has_floats(MODE)),
                        level_of(first, second, z3, BITS, ZERO, 3, place, dtype, FAST, has_floats(MODE)),
                    )
                if OUTER > 0:
                    scale = scale_ptr
                    if is_whole(INNER):
                        scale = of_quad(scale_ptr, own, line, quad, inside, OUTER, groups, EVEN_N, EVEN_K)
                    words = factor_words(factor_ptr, own, line, quad, inside, GROUP, EVEN_N)
                    total = _factored(level, words, scale, x, total, half, GROUP, INNER, SCALED, FAST)
                    if has_minimum(MODE):
                        low = of_quad(shift_ptr, own, line, quad, inside, OUTER, groups, EVEN_N, EVEN_K)
                        words = factor_words(shift_factor_ptr, own, line, quad, inside, GROUP, EVEN_N)
                        total += low * _weighted(words, x, half, GROUP, ROWS)
                elif GROUP == 0:
                    for strip in tl.static_range(4):
                        total = tl.dot(level[strip], tl.trans(x[strip]), total, input_precision="ieee")
                        if has_minimum(MODE):
                            sums += tl.sum(x[strip].to(tl.float32), axis=1)
                elif GROUP % 128 == 0:
                    scale = of_strip(scale_ptr, own, line, quad, 0, inside, GROUP, groups, EVEN_N, EVEN_K)
                    part = tl.dot(level[0], tl.trans(x0), input_precision="ieee")
                    part = tl.dot(level[1], tl.trans(x1), part, input_precision="ieee")
                    part = tl.dot(level[2], tl.trans(x2), part, input_precision="ieee")
                    part = tl.dot(level[3], tl.trans(x3), part, input_precision="ieee")
                    total += scale.to(tl.float32) * part
                elif GROUP % 64 == 0:
                    for pair in tl.static_range(2):
                        scale = of_strip(
                            scale_ptr, own, line, quad, 2 * pair, inside, GROUP, groups, EVEN_N, EVEN_K
                        )
                        part = tl.dot(level[2 * pair], tl.trans(x[2 * pair]), input_precision="ieee")
                        part = tl.dot(
                            level[2 * pair + 1], tl.trans(x[2 * pair + 1]), part, input_precision="ieee"
                        )
                        total += scale.to(tl.float32) * part
                else:
                    for strip in tl.static_range(4):
                        scale = of_strip(
                            scale_ptr, own, line, quad, strip, inside, GROUP, groups, EVEN_N, EVEN_K
                        )
                        if GROUP % 32 == 0 and SCALED:
                            value = level[strip] * scale
                            total = tl.dot(value, tl.trans(x[strip]), total, input_precision="ieee")
                        elif GROUP % 32 == 0:
                            part = tl.dot(level[strip], tl.trans(x[strip]), input_precision="ieee")
                            total += scale.to(tl.float32) * part
                        else:
                            value = level[strip].to(tl.float32) * scale.to(tl.float32)
                            if has_minimum(MODE):
                                value += of_strip(
                                    shift_ptr, own, line, quad, strip, inside, GROUP, groups, EVEN_N, EVEN_K
                                ).to(tl.float32)
                            total = tl.dot(value.to(dtype), tl.trans(x[strip]), total, input_precision="ieee")
                if has_minimum(MODE) and GROUP % 32 == 0 and GROUP > 0 and OUTER == 0:
                    for strip in tl.static_range(4):
                        minimum = of_strip(
                            shift_ptr, own, line, quad, strip, inside, GROUP, groups, EVEN_N, EVEN_K
                        )
                        total = _minima(minimum, x[strip], total, ROWS)
    if GROUP == 0:
        scale = of_strip(scale_ptr, own, line, 0, 0, inside, GROUP, groups, EVEN_N, EVEN_K)
        total = total * scale.to(tl.float32)
        if has_minimum(MODE):
            minimum = of_strip(shift_ptr, own, line, 0, 0, inside, GROUP, groups, EVEN_N, EVEN_K)
            total += minimum.to(tl.float32) * sums[None, :]
    if not is_whole(INNER):
        scale = of_strip(scale_ptr, own, line, 0, 0, inside, 0, groups, EVEN_N, EVEN_K)
        if is_quotient(INNER):
            total = total / divisor(scale)
        else:
            total = total * scale
    if has_floats(MODE) and FAST and dtype == tl.float16:
        total = total * float_unit(BITS)
    if has_table(MODE) and dtype != tl.float32:
        total = total * tl.load(table_ptr + (98 if dtype == tl.bfloat16 else 97))
    last = True
    if SPLIT > 1:
        part_of = tl.program_id(2) * tl.num_programs(0) + tile
        place = tl.arange(0, ROWS)[:, None] * BATCH + tl.arange(0, BATCH)[None, :]
        base = partial_ptr + part_of.to(tl.int64) * (SPLIT * ROWS * BATCH) + place
        tl.store(base + split * (ROWS * BATCH), total)
        # What every thread of the program has stored comes before the count, and the count before the reads below.
        tl.debug_barrier()
        last = tl.atomic_add(arrived_ptr + part_of, 1, sem="acq_rel") == SPLIT - 1
        if last:
            tl.debug_barrier()
            total = tl.zeros((ROWS, BATCH), dtype=tl.float32)
            for other in range(SPLIT):
                total += tl.load(base + other * (ROWS * BATCH), cache_modifier=".cg")
            # The next launch finds the count as this one did.
            tl.store(arrived_ptr + part_of, 0)
    if last:
        if BIAS:
            total += tl.load(bias_ptr + row, mask=row < N, other=0.0).to(tl.float32)[:, None]
        if PARTS == 1:
            target = out_ptr + m.to(tl.int64)[None, :] * N + row[:, None]
        else:
            end = N if PARTS == 2 else border2
            start = tl.where(row < border, 0, border)
            width = tl.where(row < border, border, end - border)
            if PARTS == 3:
                start = tl.where(row < border2, start, border2)
                width = tl.where(row < border2, width, N - border2)
            inner = m.to(tl.int64)[None, :] * width[:, None] + (row - start)[:, None]
            target = out_ptr + start.to(tl.int64)[:, None] * M + inner
        tl.store(target, total.to(dtype), mask=inside & (m < M)[None, :])
