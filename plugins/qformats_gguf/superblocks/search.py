"""Weights to codes and scales, by ggml's own searches: bytes equal those of ``ggml_quantize_chunk``, bit for bit.

Three steps: scales of the sub-blocks, searched with many of them side by side; from these the super-block's scale and
the whole numbers that are stored; then codes again, with the scales as they will be read. Source:
llama.cpp:ggml/src/ggml-quants.c (``quantize_row_*_ref``, ``quantize_row_*_impl``). This module imports numba. Import it
inside functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import float32, int8, int32, uint8
from numpy.typing import NDArray

from qformats.kernels import cpu
from qformats_gguf.superblocks import affine as affine_module
from qformats_gguf.superblocks import lanes, layout
from qformats_gguf.superblocks import positive as positive_module
from qformats_gguf.superblocks import symmetric as symmetric_module
from qformats_gguf.superblocks import table as table_module
from qformats_gguf.superblocks.affine import affine
from qformats_gguf.superblocks.lanes import EPSILON, TILE, clamped, load, load_importance, nearest, weigh
from qformats_gguf.superblocks.layout import SuperLayout
from qformats_gguf.superblocks.positive import positive
from qformats_gguf.superblocks.symmetric import refined, symmetric
from qformats_gguf.superblocks.table import nearest_code, table

__all__ = ["PLAIN", "search", "search_single"]

_LANES, _POSITIVE = lanes.__file__, positive_module.__file__
_AFFINE, _SYMMETRIC = affine_module.__file__, symmetric_module.__file__
_TABLE = table_module.__file__


@cpu.jit(inline="code")
def _infinite(half: Any) -> Any:
    """Whether the bits of a float16 are those of infinity or NaN."""
    return (half & 0x7FFF) >= 0x7C00


@cpu.jit()
def _totals(w: Any, totals: Any) -> None:
    """Weights of all elements of each sub-block, in the order in which C adds them up."""
    blocks = totals.shape[1]
    for j in range(totals.shape[0]):
        for b in range(blocks):
            totals[j, b] = float32(0)
        for i in range(w.shape[0]):
            for b in range(blocks):
                totals[j, b] = float32(totals[j, b] + w[i, j * blocks + b])


@cpu.jit(inline="code")
def _extreme(scale: Any, block: Any) -> Any:
    """The first of the largest scales of a block, with its sign."""
    found = float32(0)
    for j in range(scale.shape[0]):
        found = scale[j, block] if abs(scale[j, block]) > abs(found) else found
    return found


@cpu.jit(_LANES)
def _own_scales(values: Any, top: Any, codes: Any) -> Any:
    """Scale of the scales without importances: the largest gets the last code."""
    largest = float32(0)
    for j in range(values.size):
        largest = values[j] if values[j] > largest else largest
    inverse = float32(float32(top) / largest) if largest > 0 else float32(0)
    for j in range(values.size):
        # C stores a byte before it takes the minimum; of nibbles it takes none.
        code = int32(nearest(float32(inverse * values[j])) & 255)
        codes[j] = code if top < 63 else min(int32(63), code)
    return float32(largest / float32(top)) if largest > 0 else float32(0)


@cpu.jit(_LANES, _AFFINE, _POSITIVE)
def _affine(
    source: Any,
    importance: Any,
    weighted: Any,
    sub: Any,
    top: Any,
    sub_top: Any,
    rule: Any,
    search: Any,
    steps: Any,
    absolute: Any,
    before: Any,
    codes: Any,
    halves: Any,
    scales: Any,
    minima: Any,
) -> Any:
    """q2_k, q4_k, q5_k."""
    total, size = source.shape
    per_block = size // sub
    blocks = TILE // size
    width = per_block * blocks
    x, w = np.empty((sub, width), np.float32), np.empty((sub, width), np.float32)
    found, scratch = np.empty((4, width), np.float32), np.empty((12, width), np.float32)
    sums = np.empty(blocks, np.float32)
    weights = np.empty((per_block, blocks), np.float32)
    own = np.empty((2, per_block), np.int32)
    chosen = np.empty((2, per_block, blocks), np.int32)
    outer = np.empty((2, blocks), np.float32)
    overflow = 0
    for first in range(0, total, blocks):
        count = min(blocks, total - first)
        load(source, first, count, sub, x)
        if weighted:
            load_importance(importance, first, count, sub, w)
        weigh(x, w, blocks, rule, before, float32(256), sums)
        affine(x, w, top, search[0], search[1], steps, absolute, found, scratch)
        # Minima are stored with the other sign.
        for lane in range(width):
            scratch[0, lane] = float32(-found[1, lane])
        scale, low = found[0].reshape(per_block, blocks), scratch[0].reshape(per_block, blocks)
        if weighted:
            _totals(w, weights)
            positive(scale, weights, sub_top, outer[0], chosen[0])
            positive(low, weights, sub_top, outer[1], chosen[1])
        for b in range(count):
            if weighted:
                for j in range(per_block):
                    own[0, j], own[1, j] = chosen[0, j, b], chosen[1, j, b]
            else:
                outer[0, b] = _own_scales(scale[:, b], sub_top, own[0])
                outer[1, b] = _own_scales(low[:, b], sub_top, own[1])
            number = first + b
            if sub_top == 15:
                for j in range(per_block):
                    byte = int32(int32(own[0, j] | int32(own[1, j] << 4)) & 255)
                    own[0, j], own[1, j] = int32(byte & 15), int32(byte >> 4)
            halves[number, 0] = cpu.f32_to_f16(outer[0, b])
            halves[number, 1] = cpu.f32_to_f16(outer[1, b])
            overflow += _infinite(halves[number, 0]) | _infinite(halves[number, 1])
            d, dmin = cpu.f16_to_f32(halves[number, 0]), cpu.f16_to_f32(halves[number, 1])
            for j in range(per_block):
                scales[number, j], minima[number, j] = int8(own[0, j]), int8(own[1, j])
                step, shift = float32(d * float32(own[0, j])), float32(dmin * float32(own[1, j]))
                values = source[number, j * sub : (j + 1) * sub]
                target = codes[number, j * sub : (j + 1) * sub]
                if step != 0:
                    for i in range(values.size):
                        target[i] = uint8(clamped(float32(float32(values[i] + shift) / step), 0, top))
                else:
                    inverse, base = found[2, j * blocks + b], found[3, j * blocks + b]
                    for i in range(values.size):
                        target[i] = uint8(clamped(float32(inverse * float32(values[i] - base)), 0, top))
    return overflow


@cpu.jit(_LANES, inline="code")
def _recode(values: Any, step: Any, inverse: Any, live: Any, half: Any, target: Any) -> None:
    """Codes of a sub-block around zero with its scale as it will be read; with the searched one where that is 0."""
    if step != 0:
        for i in range(values.size):
            target[i] = uint8(clamped(float32(values[i] / step), -half, half - 1) + half)
    elif live == 0:
        target[:] = uint8(0)
    else:
        for i in range(values.size):
            target[i] = uint8(clamped(float32(inverse * values[i]), -half, half - 1) + half)


# q6_k and q3_k are kernels of their own: whoever exports to one should not wait for the other to be compiled.


@cpu.jit(_LANES, _SYMMETRIC)
def _six(source: Any, importance: Any, weighted: Any, rule: Any, codes: Any, halves: Any, scales: Any) -> Any:
    """q6_k."""
    total, size = source.shape
    sub, half = 16, 32
    per_block = size // sub
    blocks = TILE // size
    width = per_block * blocks
    x, w = np.empty((sub, width), np.float32), np.empty((sub, width), np.float32)
    found, scratch = np.empty((3, width), np.float32), np.empty((5, width), np.float32)
    sums = np.empty(blocks, np.float32)
    overflow = 0
    for first in range(0, total, blocks):
        count = min(blocks, total - first)
        load(source, first, count, sub, x)
        if weighted:
            load_importance(importance, first, count, sub, w)
        weigh(x, w, blocks, rule, float32(2), float32(256), sums)
        symmetric(x, w, half, found, scratch)
        scale = found[0].reshape(per_block, blocks)
        for b in range(count):
            number = first + b
            extreme = _extreme(scale, b)
            if abs(extreme) < EPSILON:
                halves[number, 0] = 0
                scales[number, :], codes[number, :] = int8(0), uint8(0)
                continue
            inverse = float32(float32(-128) / extreme)
            halves[number, 0] = cpu.f32_to_f16(float32(float32(1) / inverse))
            overflow += _infinite(halves[number, 0])
            d = cpu.f16_to_f32(halves[number, 0])
            for j in range(per_block):
                scales[number, j] = int8(min(int32(127), nearest(float32(inverse * scale[j, b]))))
                lane = j * blocks + b
                _recode(
                    source[number, j * sub : (j + 1) * sub],
                    float32(d * float32(scales[number, j])),
                    found[1, lane],
                    found[2, lane],
                    half,
                    codes[number, j * sub : (j + 1) * sub],
                )
    return overflow


@cpu.jit(_LANES, _SYMMETRIC)
def _three(
    source: Any, importance: Any, weighted: Any, rule: Any, codes: Any, halves: Any, scales: Any
) -> Any:
    """q3_k."""
    total, size = source.shape
    sub, half = 16, 4
    per_block = size // sub
    blocks = TILE // size
    width = per_block * blocks
    x, w = np.empty((sub, width), np.float32), np.empty((sub, width), np.float32)
    levels = np.empty((sub, width), np.float32)
    few, chosen = np.empty((2 * sub + 3) * width, np.float32), np.empty(width + 1, np.int64)
    found, scratch = np.empty((3, width), np.float32), np.empty((5, width), np.float32)
    sums = np.empty(blocks, np.float32)
    weights = np.empty((per_block, blocks), np.float32)
    outer, outer_scratch = np.empty((3, blocks), np.float32), np.empty((5, blocks), np.float32)
    overflow = 0
    for first in range(0, total, blocks):
        count = min(blocks, total - first)
        load(source, first, count, sub, x)
        if weighted:
            load_importance(importance, first, count, sub, w)
            weigh(x, w, blocks, rule, float32(2), float32(256), sums)
            symmetric(x, w, half, found, scratch)
        else:
            refined(x, half, found, levels, scratch, few, chosen)
        scale = found[0].reshape(per_block, blocks)
        if weighted:
            _totals(w, weights)
            symmetric(scale, weights, 32, outer, outer_scratch)
        for b in range(count):
            number = first + b
            extreme = _extreme(scale, b)
            if weighted:
                halves[number, 0] = cpu.f32_to_f16(outer[0, b])
                for j in range(per_block):
                    code = clamped(float32(outer[1, b] * scale[j, b]), -32, 31)
                    scales[number, j] = int8(code if outer[2, b] != 0 else -32)
            elif extreme != 0:
                inverse = float32(float32(-32) / extreme)
                halves[number, 0] = cpu.f32_to_f16(float32(float32(1) / inverse))
                for j in range(per_block):
                    code = int8(nearest(float32(inverse * scale[j, b])))
                    scales[number, j] = int8(max(int32(-32), min(int32(31), int32(code))))
            else:
                halves[number, 0] = 0
                scales[number, :] = int8(-32)
            overflow += _infinite(halves[number, 0])
            d = cpu.f16_to_f32(halves[number, 0])
            for j in range(per_block):
                step = float32(d * float32(scales[number, j]))
                lane = j * blocks + b
                target = codes[number, j * sub : (j + 1) * sub]
                if step == 0 and found[2, lane] != 0 and not weighted:
                    for i in range(target.size):
                        target[i] = uint8(int32(levels[i, lane]) + half)
                else:
                    values = source[number, j * sub : (j + 1) * sub]
                    _recode(values, step, found[1, lane], found[2, lane], half, target)
    return overflow


@cpu.jit(_LANES, _TABLE, layout.__file__)
def _table(
    source: Any, importance: Any, weighted: Any, rule: Any, codes: Any, halves: Any, scales: Any
) -> Any:
    """iq4_nl, where a block is one sub-block, and iq4_xs."""
    total, size = source.shape
    sub = 32
    per_block = size // sub
    blocks = TILE // size
    width = per_block * blocks
    x, w = np.empty((sub, width), np.float32), np.empty((sub, width), np.float32)
    found, scratch = np.empty(width, np.float32), np.empty((5, width), np.float32)
    sums = np.empty(blocks, np.float32)
    overflow = 0
    for first in range(0, total, blocks):
        count = min(blocks, total - first)
        load(source, first, count, sub, x)
        if weighted:
            load_importance(importance, first, count, sub, w)
        weigh(x, w, blocks, rule, float32(float32(2) / float32(size)), float32(1), sums)
        table(x, w, found, scratch)
        scale = found.reshape(per_block, blocks)
        for b in range(count):
            number = first + b
            d = scale[0, b]
            if per_block > 1:
                d = float32(float32(-_extreme(scale, b)) / float32(32))
            halves[number, 0] = cpu.f32_to_f16(d)
            overflow += _infinite(halves[number, 0])
            outer = float32(float32(1) / d) if d != 0 else float32(0)
            for j in range(per_block):
                inverse = outer
                if per_block > 1:
                    code = clamped(float32(outer * scale[j, b]), -32, 31)
                    scales[number, j] = int8(code)
                    step = float32(d * float32(code))
                    inverse = float32(float32(1) / step) if step != 0 else float32(0)
                values = source[number, j * sub : (j + 1) * sub]
                target = codes[number, j * sub : (j + 1) * sub]
                for i in range(values.size):
                    target[i] = uint8(nearest_code(float32(inverse * values[i])))
    return overflow


@cpu.jit()
def _mean_squares(source: Any, means: Any) -> None:
    """Mean square of every row, summed from its first element to its last."""
    for row in range(source.shape[0]):
        total = float32(0)
        for i in range(source.shape[1]):
            total = float32(total + float32(source[row, i] * source[row, i]))
        means[row] = float32(total / float32(source.shape[1]))


@cpu.jit(_LANES, _AFFINE, _SYMMETRIC)
def _single(
    source: Any, importance: Any, means: Any, levels: Any, minimum: Any, codes: Any, halves: Any
) -> Any:
    """q4_0, q5_0, q4_1 and q5_1 with importances: blocks of 32 with scales of their own."""
    total, sub = source.shape
    width = TILE // sub
    per_row = importance.shape[1]
    x, w = np.empty((sub, width), np.float32), np.empty((sub, width), np.float32)
    found, scratch = np.empty((4, width), np.float32), np.empty((12, width), np.float32)
    sums = np.zeros(width, np.float32)
    overflow = 0
    for first in range(0, total, width):
        count = min(width, total - first)
        load(source, first, count, sub, x)
        load_importance(importance, first, count, sub, w)
        for b in range(count):
            sums[b] = means[(first + b) // per_row]
        weigh(x, w, width, 5, float32(1), float32(1), sums)
        if minimum:
            affine(x, w, levels - 1, float32(-0.9), float32(0.05), 36, False, found, scratch)
        else:
            symmetric(x, w, levels // 2, found, scratch)
        for b in range(count):
            number = first + b
            halves[number, 0] = cpu.f32_to_f16(found[0, b])
            beyond = _infinite(halves[number, 0])
            values, target = source[number], codes[number]
            if minimum:
                halves[number, 1] = cpu.f32_to_f16(found[1, b])
                beyond |= _infinite(halves[number, 1])
                inverse, base = found[2, b], found[3, b]
                for i in range(values.size):
                    code = clamped(float32(inverse * float32(values[i] - base)), 0, levels - 1)
                    target[i] = uint8(code)
            elif found[2, b] == 0:
                target[:] = uint8(0)
            else:
                half, inverse = levels // 2, found[1, b]
                for i in range(values.size):
                    target[i] = uint8(clamped(float32(inverse * values[i]), -half, half - 1) + half)
            overflow += beyond
    return overflow


def search_single(
    source: NDArray[np.float32],
    importance: NDArray[np.float32],
    levels: int,
    codes: NDArray[np.uint8],
    halves: NDArray[np.uint16],
) -> int:
    """Quantize rows to blocks of 32 as q4_0, q4_1, q5_0 or q5_1 do with an importance matrix.

    Parameters
    ----------
    source : ndarray
        float32 ``(rows, K)``, finite, C-contiguous.
    importance : ndarray
        float32 ``(1 or rows, K / 32, 32)``, C-contiguous.
    levels : int
        Number of codes.
    codes : ndarray
        uint8 ``(rows, K)``; overwritten.
    halves : ndarray
        uint16 ``(rows * K / 32, 1)``, or ``(..., 2)`` with a minimum: bits of float16 numbers; overwritten.

    Returns
    -------
    int
        Blocks whose scale or minimum is beyond float16.
    """
    means = np.empty(len(source), np.float32)
    values = cpu.for_reading(source)
    _mean_squares(values, means)
    blocks, given = cpu.for_reading(source, (-1, 32)), cpu.for_reading(importance)
    minimum = halves.shape[1] == 2
    return int(_single(blocks, given, means, levels, minimum, codes.reshape(-1, 32), halves))


PLAIN = {
    "q2_k": (1, (-0.5, 0.1), 15, True),
    "q4_k": (2, (-1.0, 0.1), 20, False),
    "q5_k": (2, (-0.5, 0.1), 15, False),
}
"""Rule of the weights, first trial and its step, further trials, and whether errors are not squared."""


def search(
    kind: SuperLayout,
    source: NDArray[np.float32],
    importance: NDArray[np.float32] | None,
    codes: NDArray[np.uint8],
    halves: NDArray[np.uint16],
    scales: NDArray[np.int8],
    minima: NDArray[np.int8],
) -> int:
    """Quantize blocks.

    Parameters
    ----------
    kind : SuperLayout
        The type.
    source : ndarray
        float32 ``(blocks, elements of a block)``, finite, C-contiguous.
    importance : ndarray or None
        float32 ``(1 or rows, blocks of a row, elements of a block)``, C-contiguous: weight of each element's squared
        error.
    codes : ndarray
        uint8, the shape of `source`; overwritten.
    halves : ndarray
        uint16 ``(blocks, 1)``, or ``(blocks, 2)`` with a minimum: bits of the float16 scales; overwritten.
    scales, minima : ndarray
        int8 ``(blocks, scales of a block)``: whole numbers by which these are multiplied; overwritten. Unused where a
        type has none.

    Returns
    -------
    int
        Blocks whose scale or minimum is beyond float16.

    Notes
    -----
    Runs on the calling thread without the GIL.
    """
    weighted = importance is not None
    given = np.zeros((1, 1, 1), np.float32) if importance is None else importance
    values, given = cpu.for_reading(source), cpu.for_reading(given)
    if kind.table:
        return int(_table(values, given, weighted, 3 if weighted else 0, codes, halves, scales))
    if kind.minimum:
        rule, trials, steps, absolute = PLAIN[kind.name]
        if weighted:
            rule, trials, steps, absolute = 3, (-0.9, 0.05), 36, False
        before = np.float32(1 if kind.name == "q2_k" else 2)
        found = _affine(
            *(values, given, weighted, kind.sub, (1 << kind.bits) - 1, kind.highest, rule),
            *(np.array(trials, np.float32), steps, absolute, before, codes, halves, scales, minima),
        )
        return int(found)
    kernel, rule = (_six, 4) if kind.name == "q6_k" else (_three, 3)
    return int(kernel(values, given, weighted, rule if weighted else 0, codes, halves, scales))
