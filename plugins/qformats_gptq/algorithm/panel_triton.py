"""One panel of a sweep as one GPU kernel: columns follow each other without a word to the host."""

# ruff: noqa: ANN001, ANN202 (arguments of a kernel are pointers and numbers of the device)

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]

from qformats_gptq.algorithm.levels import Levels

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["panel"]

_ROWS = 16


@triton.jit  # type: ignore[untyped-decorator, misc, unused-ignore]
def _panel_kernel(  # type: ignore[no-untyped-def]
    weight_ptr,
    target_ptr,
    scale_ptr,
    zero_ptr,
    minimum_ptr,
    table_ptr,
    feedback_ptr,
    codes_ptr,
    errors_ptr,
    rows,
    columns,
    weight_stride,
    target_stride,
    scale_stride,
    zero_stride,
    minimum_stride,
    feedback_stride,
    codes_stride,
    errors_stride,
    first,
    last,
    ZERO_EACH: tl.constexpr,
    MINIMUM: tl.constexpr,
    LEVELS: tl.constexpr,
    ROWS: tl.constexpr,
    PANEL: tl.constexpr,
):
    """code[i] = nearest(target[i]); target[j > i] += (error[i] - old error[i]) * feedback[i, j]."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    inside = row < rows
    place = tl.arange(0, PANEL)
    both = inside[:, None] & (place < columns)[None, :]
    target = tl.load(target_ptr + row[:, None] * target_stride + place[None, :], mask=both, other=0.0)
    for i in range(columns):
        value = tl.sum(tl.where(place[None, :] == i, target, 0.0), axis=1)
        weight = tl.load(weight_ptr + row * weight_stride + i, mask=inside, other=0.0)
        scale = tl.load(scale_ptr + row * scale_stride + i, mask=inside, other=0.0)
        before = tl.load(errors_ptr + row * errors_stride + i, mask=inside, other=0.0)
        if MINIMUM:
            minimum = tl.load(minimum_ptr + row * minimum_stride + i, mask=inside, other=0.0)
            value = value - minimum
        steps = tl.where(scale == 0, 0.0, tl.div_rn(value, tl.where(scale == 0, 1.0, scale)))
        if LEVELS:
            place_of = tl.zeros_like(row)
            for level in range(1, LEVELS):
                low = tl.load(table_ptr + level - 1)
                high = tl.load(table_ptr + level)
                place_of += (steps > (low + high) / 2).to(tl.int64)
            code = place_of.to(tl.float32)
            unit = tl.load(table_ptr + place_of)
        else:
            if ZERO_EACH:
                zero = tl.load(zero_ptr + row * zero_stride + i, mask=inside, other=0.0)
            else:
                zero = tl.zeros_like(value) + tl.load(zero_ptr)
            # Half to even, by way of numbers so large that they have no fraction.
            near = tl.minimum(tl.maximum(steps, -4096.0), 4096.0)
            near = (near + 12582912.0) - 12582912.0
            code = tl.minimum(tl.maximum(near + zero, first), last)
            unit = code - zero
        level_value = scale * unit
        if MINIMUM:
            level_value = level_value + minimum
        error = weight - level_value
        tl.store(codes_ptr + row * codes_stride + i, code, mask=inside)
        tl.store(errors_ptr + row * errors_stride + i, error, mask=inside)
        asked = tl.load(
            feedback_ptr + i * feedback_stride + place, mask=(place > i) & (place < columns), other=0.0
        )
        target += (error - before)[:, None] * asked[None, :]


def panel(
    start: int,
    weight: Tensor,
    target: Tensor,
    levels: Levels,
    feedback: Tensor,
    codes: Tensor,
    errors: Tensor,
) -> None:
    """Columns from `start` on; see :func:`qformats_gptq.algorithm.sweep.panel_of_torch`."""
    rows, columns = target.shape
    each = levels.zero is not None and levels.zero.shape[1] > 1
    inside = slice(start, start + columns)
    levels = levels.columns(inside)
    weight, codes, errors = weight[:, inside], codes[:, inside], errors[:, inside]
    zero, minimum, table = levels.zero, levels.minimum, levels.table
    launch: Any = _panel_kernel
    launch[(triton.cdiv(rows, _ROWS),)](
        weight,
        target,
        levels.scale,
        weight if zero is None else zero,
        weight if minimum is None else minimum,
        weight if table is None else table,
        feedback,
        codes,
        errors,
        rows,
        columns,
        weight.stride(0),
        target.stride(0),
        levels.scale.stride(0),
        zero.stride(0) if zero is not None else 0,
        0 if minimum is None else minimum.stride(0),
        feedback.stride(0),
        codes.stride(0),
        errors.stride(0),
        float(levels.first),
        float(levels.last),
        ZERO_EACH=each,
        MINIMUM=minimum is not None,
        LEVELS=0 if table is None else len(table),
        ROWS=_ROWS,
        PANEL=max(16, triton.next_power_of_2(columns)),
        num_warps=4,
        enable_fp_fusion=False,
    )
