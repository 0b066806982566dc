"""Dequantize: packed words once in, floats once out."""

# ruff: noqa: ANN001, ANN201, ANN202 (arguments of a kernel are pointers and numbers of the device)

from __future__ import annotations

import triton
import triton.language as tl

from qformats.kernels.triton_decode import (
    first_words,
    has_minimum,
    has_table,
    level_of,
    load_lookup,
    move_down,
    of_strip,
    second_words,
    start_early,
    table_levels,
)

__all__ = ["dequantize_kernel"]


@triton.jit
def _value(level, scale, minimum, MODE: tl.constexpr):
    value = scale.to(tl.float32) * level.to(tl.float32)
    if has_minimum(MODE):
        value = value + minimum.to(tl.float32)
    return value


@triton.jit
def dequantize_kernel(
    low_ptr,
    high_ptr,
    scale_ptr,
    shift_ptr,
    table_ptr,
    lookup_ptr,
    out_ptr,
    N,
    K,
    groups,
    BITS: tl.constexpr,
    MODE: tl.constexpr,
    ZERO: tl.constexpr,
    GROUP: tl.constexpr,
    FAST: tl.constexpr,
    EVEN_N: tl.constexpr,
    EVEN_K: tl.constexpr,
    ROWS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """``out = scale * level + minimum`` for `ROWS` rows and one quad: in float32, rounded once.

    `GROUP` is 0 where a row has one scale. `ZERO` is None where groups have zero points of their own.
    """
    if EARLY:
        start_early()
    quad = tl.program_id(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    lane = tl.arange(0, 32)
    inside = (row < N)[:, None]
    at = row[:, None] * 32 + lane[None, :]
    # A table is looked up in float32; other levels are exact in float16.
    kind: tl.constexpr = tl.float16 if FAST else tl.float32
    first = first_words(low_ptr, quad, at, inside, N * 32, BITS, EVEN_N)
    second = second_words(first, low_ptr, high_ptr, quad, at, inside, N * 32, BITS, EVEN_N)
    # Everything is loaded before anything is stored: the compiler moves no load across a store.
    s0 = of_strip(scale_ptr, row, N, quad, 0, inside, GROUP, groups, EVEN_N, EVEN_K)
    s1 = s0
    s2 = s0
    s3 = s0
    if GROUP % 128 != 0:
        s1 = of_strip(scale_ptr, row, N, quad, 1, inside, GROUP, groups, EVEN_N, EVEN_K)
        s2 = of_strip(scale_ptr, row, N, quad, 2, inside, GROUP, groups, EVEN_N, EVEN_K)
        s3 = of_strip(scale_ptr, row, N, quad, 3, inside, GROUP, groups, EVEN_N, EVEN_K)
    m0 = s0
    m1 = s0
    m2 = s0
    m3 = s0
    if has_minimum(MODE) or ZERO is None:
        m0 = of_strip(shift_ptr, row, N, quad, 0, inside, GROUP, groups, EVEN_N, EVEN_K)
        m1 = m0
        m2 = m0
        m3 = m0
        if GROUP % 128 != 0:
            m1 = of_strip(shift_ptr, row, N, quad, 1, inside, GROUP, groups, EVEN_N, EVEN_K)
            m2 = of_strip(shift_ptr, row, N, quad, 2, inside, GROUP, groups, EVEN_N, EVEN_K)
            m3 = of_strip(shift_ptr, row, N, quad, 3, inside, GROUP, groups, EVEN_N, EVEN_K)
    first, second = move_down(first, second, quad, BITS)
    scale = (s0, s1, s2, s3)
    shift = (m0, m1, m2, m3)
    target = out_ptr + row.to(tl.int64)[:, None] * K + quad * 128
    if has_table(MODE):
        lookup = table_ptr
        upper = table_ptr
        if FAST:
            lookup = load_lookup(lookup_ptr, 17)
            upper = load_lookup(lookup_ptr, 25)
        levels = table_levels(first, table_ptr, lookup, upper, tl.float32, FAST, False)
    else:
        levels = (
            level_of(first, second, m0, BITS, ZERO, 0, 0, kind, FAST),
            level_of(first, second, m1, BITS, ZERO, 1, 0, kind, FAST),
            level_of(first, second, m2, BITS, ZERO, 2, 0, kind, FAST),
            level_of(first, second, m3, BITS, ZERO, 3, 0, kind, FAST),
        )
    for strip in tl.static_range(4):
        value = _value(levels[strip], scale[strip], shift[strip], MODE).to(out_ptr.dtype.element_ty)
        column = strip * 32 + lane[None, :]
        if EVEN_N and EVEN_K:
            tl.store(target + column, value)
        else:
            tl.store(target + column, value, mask=inside & (quad * 128 + column < K))
