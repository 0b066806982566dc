"""Dequantize: packed words once in, floats once out."""

# ruff: noqa: ANN001, ANN201, ANN202 (arguments of a kernel are pointers and numbers of the device)

from __future__ import annotations

import triton
import triton.language as tl

from qformats.kernels.triton_decode import (
    divisor,
    factor_words,
    first_words,
    float_unit,
    has_floats,
    has_minimum,
    has_table,
    is_quotient,
    level_of,
    load_lookup,
    move_down,
    of_quad,
    of_strip,
    scale_of,
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
def _parameters(
    ptr, row, N, quad, inside, GROUP: tl.constexpr, groups, EVEN_N: tl.constexpr, EVEN_K: tl.constexpr
):
    """Parameters of the four strips, each loaded once."""
    first = of_strip(ptr, row, N, quad, 0, inside, GROUP, groups, EVEN_N, EVEN_K)
    if GROUP % 128 == 0:
        return first, first, first, first
    else:
        return (
            first,
            of_strip(ptr, row, N, quad, 1, inside, GROUP, groups, EVEN_N, EVEN_K),
            of_strip(ptr, row, N, quad, 2, inside, GROUP, groups, EVEN_N, EVEN_K),
            of_strip(ptr, row, N, quad, 3, inside, GROUP, groups, EVEN_N, EVEN_K),
        )


@triton.jit
def _of_half(
    outer,
    words,
    STRIP: tl.constexpr,
    HALF: tl.constexpr,
    GROUP: tl.constexpr,
    INNER: tl.constexpr,
    FAST: tl.constexpr,
):
    if is_quotient(INNER):
        return tl.div_rn(scale_of(1.0, words, STRIP, HALF, GROUP, INNER, FAST), divisor(outer))
    else:
        return scale_of(outer, words, STRIP, HALF, GROUP, INNER, FAST)


@triton.jit
def _product(outer, words, STRIP: tl.constexpr, GROUP: tl.constexpr, INNER: tl.constexpr, FAST: tl.constexpr):
    """Scale of one strip: ``[rows, 1]``, or ``[rows, 32]`` where it has two."""
    left = _of_half(outer, words, STRIP, 0, GROUP, INNER, FAST)
    if GROUP == 32:
        return left
    else:
        right = _of_half(outer, words, STRIP, 1, GROUP, INNER, FAST)
        return tl.where((tl.arange(0, 32) < 16)[None, :], left, right)


@triton.jit
def _products(
    outer_ptr,
    factor_ptr,
    row,
    N,
    quad,
    inside,
    GROUP: tl.constexpr,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
    outers,
    FAST: tl.constexpr,
    EVEN_N: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """Parameters of the four strips where each is a product, which float32 holds exactly."""
    outer = of_quad(outer_ptr, row, N, quad, inside, OUTER, outers, EVEN_N, EVEN_K)
    words = factor_words(factor_ptr, row, N, quad, inside, GROUP, EVEN_N)
    return (
        _product(outer, words, 0, GROUP, INNER, FAST),
        _product(outer, words, 1, GROUP, INNER, FAST),
        _product(outer, words, 2, GROUP, INNER, FAST),
        _product(outer, words, 3, GROUP, INNER, FAST),
    )


@triton.jit
def dequantize_kernel(
    low_ptr,
    high_ptr,
    scale_ptr,
    shift_ptr,
    table_ptr,
    lookup_ptr,
    factor_ptr,
    shift_factor_ptr,
    out_ptr,
    N,
    K,
    line,
    groups,
    BITS: tl.constexpr,
    MODE: tl.constexpr,
    ZERO: tl.constexpr,
    GROUP: tl.constexpr,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
    FAST: tl.constexpr,
    EVEN_N: tl.constexpr,
    EVEN_K: tl.constexpr,
    ROWS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """``out = scale * level + minimum`` for `ROWS` rows and one quad: in float32, rounded once.

    `GROUP` is 0 where a row has one scale. `OUTER` is not 0 where scales are products of a number of that many columns
    and a factor of each group, of the kind `INNER`; `groups` then counts the former. `ZERO` is None where groups have
    zero points of their own. `line` is how many rows lie together in the planes and parameters.
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
    first = first_words(low_ptr, quad, at, inside, line * 32, BITS, EVEN_N)
    second = second_words(first, low_ptr, high_ptr, quad, at, inside, line * 32, BITS, EVEN_N)
    # Everything is loaded before anything is stored: the compiler moves no load across a store.
    if OUTER > 0:
        scale = _products(
            scale_ptr, factor_ptr, row, line, quad, inside, GROUP, OUTER, INNER, groups, FAST, EVEN_N, EVEN_K
        )
        shift = scale
        if has_minimum(MODE):
            shift = _products(
                shift_ptr,
                shift_factor_ptr,
                row,
                line,
                quad,
                inside,
                GROUP,
                OUTER,
                INNER,
                groups,
                FAST,
                EVEN_N,
                EVEN_K,
            )
    else:
        scale = _parameters(scale_ptr, row, line, quad, inside, GROUP, groups, EVEN_N, EVEN_K)
        shift = scale
        if has_minimum(MODE) or ZERO is None:
            shift = _parameters(shift_ptr, row, line, quad, inside, GROUP, groups, EVEN_N, EVEN_K)
    first, second = move_down(first, second, quad, BITS)
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
            level_of(first, second, shift[0], BITS, ZERO, 0, 0, kind, FAST, has_floats(MODE)),
            level_of(first, second, shift[1], BITS, ZERO, 1, 0, kind, FAST, has_floats(MODE)),
            level_of(first, second, shift[2], BITS, ZERO, 2, 0, kind, FAST, has_floats(MODE)),
            level_of(first, second, shift[3], BITS, ZERO, 3, 0, kind, FAST, has_floats(MODE)),
        )
    if has_floats(MODE) and FAST:
        levels = (
            levels[0].to(tl.float32) * float_unit(BITS),
            levels[1].to(tl.float32) * float_unit(BITS),
            levels[2].to(tl.float32) * float_unit(BITS),
            levels[3].to(tl.float32) * float_unit(BITS),
        )
    for strip in tl.static_range(4):
        value = _value(levels[strip], scale[strip], shift[strip], MODE).to(out_ptr.dtype.element_ty)
        column = strip * 32 + lane[None, :]
        if EVEN_N and EVEN_K:
            tl.store(target + column, value)
        else:
            tl.store(target + column, value, mask=inside & (quad * 128 + column < K))
