"""How the Triton kernels are started."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from qformats.kernels.codebook import lookup_of
from qformats.kernels.direct import direct
from qformats.kernels.dispatch import uses_triton
from qformats.kernels.form import (
    AFFINE,
    FLOAT,
    MINIMUM,
    PLANES,
    QUAD,
    STRIP,
    TABLE,
    DeviceForm,
    DeviceWeight,
    padded_columns,
)
from qformats.kernels.scratch import counters, shared
from qformats.kernels.tiles import Tiles, choose_tiles, steps_of
from qformats.kernels.triton_dequantize import dequantize_kernel
from qformats.kernels.triton_linear import linear_kernel

__all__ = [
    "Launch",
    "chosen_linear",
    "current",
    "dequantize",
    "divided",
    "joined_linear",
    "linear",
    "prepare",
    "uses_launcher",
]


def current(device: torch.device) -> AbstractContextManager[object]:
    """Make a device the current one: Triton launches there, wherever the tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _arguments(weight: DeviceWeight) -> tuple[Tensor, ...]:
    """Pointers that both kernels take; the scale stands in for what a mode lacks, and is never read."""
    scale = weight.scale
    shift = scale if weight.shift is None else weight.shift
    table = scale if weight.table is None else weight.table.view(torch.float32)
    lookup = scale if weight.table is None else lookup_of(weight.table)
    factors = (scale if part is None else part for part in (weight.factor, weight.shift_factor))
    return weight.planes[0], weight.planes[-1], scale, shift, table, lookup, *factors


def _constants(weight: DeviceWeight) -> dict[str, Any]:
    form = weight.form
    own_zeros = form.mode == AFFINE and weight.shift is not None
    padded = padded_columns(form.columns, form.bits)
    return {
        "BITS": form.bits,
        "MODE": form.mode,
        "ZERO": None if own_zeros else form.zero,
        "GROUP": 0 if form.group >= form.columns and not form.factored else form.group,
        "OUTER": padded if form.inner else form.outer,
        "INNER": form.inner,
        "EVEN_K": padded == form.columns,
    }


@functools.cache
def _early(device: torch.device) -> dict[str, bool]:
    """Whether a launch may overlap the end of the kernel before it: from compute capability 9 on."""
    able = device.type == "cuda" and torch.version.hip is None
    able = able and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"EARLY": True, "launch_pdl": True} if able else {"EARLY": False}


def _fast(weight: DeviceWeight, dtype: torch.dtype) -> bool:
    """Whether pairs of levels can be decoded at once: on the device, in two bytes, and exactly."""
    form = weight.form
    if not weight.scale.is_cuda or dtype == torch.float32:
        return False
    if form.mode == TABLE:
        # Several groups in a strip are scaled before the product, in a layout that does not keep neighbours together.
        return form.group % STRIP == 0 or form.group >= form.columns or form.factored
    if form.mode == FLOAT:
        # Those are so small in float16 that they are scaled after the product.
        return form.group % STRIP == 0 or form.group >= form.columns or form.factored
    if dtype == torch.bfloat16:
        # Eight bits of precision: 128 + code + zero must stay below 256.
        return form.bits <= 6 and form.zero <= 64
    return True


def _dequantizing_tiles(form: DeviceForm) -> tuple[int, int]:
    """Rows and warps of a program that dequantizes a quad."""
    if form.mode == TABLE or len(PLANES[form.bits]) > 1 or form.rows * form.columns < 1 << 25:
        return 64, 8
    return (16, 4) if form.group < QUAD else (16, 8)


def dequantize(weight: DeviceWeight, dtype: torch.dtype) -> Tensor:
    """Value of every element in device order of columns: ``(N, K)`` of `dtype`, rounded once."""
    form = weight.form
    out = torch.empty((form.rows, form.columns), dtype=dtype, device=weight.scale.device)
    rows, warps = _dequantizing_tiles(form)
    quads = padded_columns(form.columns, form.bits) // QUAD
    quads = min(quads, -(-form.columns // QUAD))
    kernel: Any = dequantize_kernel
    with current(out.device):
        kernel[(quads, -(-form.rows // rows))](
            *_arguments(weight),
            out,
            form.rows,
            form.columns,
            form.line or form.rows,
            weight.scale.shape[0],
            **_constants(weight),
            FAST=weight.scale.is_cuda if form.mode == TABLE else _fast(weight, torch.float16),
            EVEN_N=form.rows % rows == 0,
            ROWS=rows,
            **_early(out.device),
            num_warps=warps,
            # The value is a product rounded, then a sum rounded.
            enable_fp_fusion=False,
        )
    return out


class Launch:
    """A launch of the fused linear for one number of rows, with everything settled that stays the same.

    Parameters
    ----------
    grid : tuple of int
        Programs.
    arguments : sequence
        Of the kernel, constants included, in the order of its signature.
    tiles : Tiles
        Shape of the programs.
    compiled : object
        What Triton has compiled for them.
    """

    def __init__(
        self, grid: tuple[int, int, int], arguments: Sequence[Any], tiles: Tiles, compiled: Any
    ) -> None:
        self._arguments, self._split = list(arguments), tiles.split > 1
        self._direct = direct(
            compiled, dict(zip(linear_kernel.arg_names, arguments, strict=True)), grid, _CHANGING
        )
        self._device: int = arguments[_X].device.index
        for place in (_X, _BIAS, _OUT, _PARTIAL, _ARRIVED):
            self._arguments[place] = None
        self._counts = grid[0] * grid[2]
        self._partial = grid[0] * grid[1] * grid[2] * tiles.rows * tiles.batch
        self._run = compiled[grid]

    def __call__(self, x: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """Write ``x @ W.T + bias`` into `out`, on the current stream; all are as in the launch this was made of."""
        partial = arrived = x
        stream = torch._C._cuda_getCurrentRawStream(self._device)
        if self._split:
            partial, arrived = shared(self._partial, self._counts, x.device, stream)
        changing = (x, x if bias is None else bias, out, partial, arrived)
        if self._direct is not None:
            self._direct(stream, [each.data_ptr() for each in changing])
            return
        arguments = self._arguments.copy()
        for place, each in zip((_X, _BIAS, _OUT, _PARTIAL, _ARRIVED), changing, strict=True):
            arguments[place] = each
        self._run(*arguments)


_CHANGING = ("x_ptr", "bias_ptr", "out_ptr", "partial_ptr", "arrived_ptr")
_X, _BIAS, _OUT, _PARTIAL, _ARRIVED = (linear_kernel.arg_names.index(name) for name in _CHANGING)


def linear(x: Tensor, weight: DeviceWeight, bias: Tensor | None, tiles: Tiles | None = None) -> Tensor:
    """``x @ W.T + bias`` with the weight decoded on the way: ``(M, K)`` to ``(M, N)``, columns in device order."""
    return _launched(x, weight, bias, tiles)[0]


def chosen_linear(x: Tensor, weight: DeviceWeight, chosen: Tensor, share: int) -> Tensor:
    """Products of single rows with one of many weights each.

    Parameters
    ----------
    x : Tensor
        ``(M, K)``.
    weight : DeviceWeight
        The first of many that lie together, see :mod:`qformats.kernels.stacking`; ``(N, K)``.
    chosen : Tensor
        Integers, ``(M * share,)``: number of the weight.
    share : int
        How many products take the same row of `x`.

    Returns
    -------
    Tensor
        ``(M * share, N)``.
    """
    return _launched(x, weight, None, None, (chosen, share))[0]


def joined_linear(
    x: Tensor, weight: DeviceWeight, bias: Tensor | None, rows: Sequence[int]
) -> tuple[Tensor, ...]:
    """Products with several weights that lie together, of so many rows each: see :mod:`qformats.kernels.joining`."""
    out = _launched(x, weight, bias, None, rows=rows)[0]
    return divided(out, (len(x),), rows)


def divided(out: Tensor, lead: Sequence[int], rows: Sequence[int]) -> tuple[Tensor, ...]:
    """What a launch for several weights has written, as a tensor for each: ``(*lead, rows)``, contiguous."""
    count = math.prod(lead)
    if count == 1:
        return out.view(*lead, -1).split_with_sizes(rows, -1)
    parts = out.view(-1).split_with_sizes([count * each for each in rows])
    return tuple([part.view(*lead, each) for part, each in zip(parts, rows, strict=True)])


def uses_launcher(x: Tensor) -> bool:
    """Whether launches can be kept: on a device, by Triton's compiler."""
    return x.is_cuda and uses_triton(x) and not torch.cuda.is_current_stream_capturing()


def prepare(x: Tensor, weight: DeviceWeight, bias: Tensor | None, rows: Sequence[int] = ()) -> Launch:
    """A launch for calls like this one, which is made once to find it; `rows` as in :func:`joined_linear`."""
    _, grid, arguments, tiles, compiled = _launched(x.contiguous(), weight, bias, None, rows=rows)
    return Launch(grid, arguments, tiles, compiled)


def _launched(
    x: Tensor,
    weight: DeviceWeight,
    bias: Tensor | None,
    tiles: Tiles | None,
    many: tuple[Tensor, int] | None = None,
    rows: Sequence[int] = (),
) -> tuple[Tensor, tuple[int, int, int], list[Any], Tiles, Any]:
    form = weight.form
    count = x.shape[0]
    x = x.contiguous()
    steps = steps_of(form)
    slots, share = (count, 0) if many is None else (len(many[0]), many[1])
    chosen = tiles or choose_tiles(1 if many else count, form, x.device, slots if many else 1)
    out = torch.empty((slots, form.rows), dtype=x.dtype, device=x.device)
    scale = weight.scale
    grid = (-(-form.rows // chosen.rows), chosen.split, slots if many else -(-count // chosen.batch))
    partial = arrived = scale
    if chosen.split > 1:
        size = grid[0] * grid[1] * grid[2] * chosen.rows * chosen.batch
        partial = torch.empty(size, dtype=torch.float32, device=x.device)
        arrived = counters(grid[0] * grid[2], x.device)
    # Where the second and the third weight begin; numbers that are not read where there are fewer.
    borders = (form.rows, form.rows) if not rows else (rows[0], sum(rows[:2]))
    arguments = (
        x,
        *_arguments(weight),
        x if bias is None else bias,
        out,
        partial,
        arrived,
        scale if many is None else many[0],
        1 if many else count,
        form.rows,
        form.columns,
        form.line or form.rows,
        scale.shape[0],
        steps,
        *borders,
    )
    constants = {
        **_constants(weight),
        "FAST": _fast(weight, x.dtype),
        "PAIRED": bool(form.paired & (2 if x.dtype == torch.bfloat16 else 1)),
        "SCALED": x.dtype == scale.dtype == torch.float16 and _scales_first(form, chosen.batch),
        "BIAS": bias is not None,
        "EVEN_N": form.rows % chosen.rows == 0,
        "PARTS": max(1, len(rows)),
    }
    stages, compiled = _start(grid, arguments, constants, chosen, share)
    constants |= {"ROWS": chosen.rows, "BATCH": chosen.batch, "SPLIT": chosen.split, "STAGES": stages}
    constants["SHARE"] = share
    names = linear_kernel.arg_names[len(arguments) :]
    return out, grid, [*arguments, *(constants[name] for name in names)], chosen, compiled


def _scales_first(form: DeviceForm, batch: int) -> bool:
    """Whether scaling levels before the product costs less than scaling the sums of each group after it."""
    if form.mode == FLOAT:
        return False
    halved = form.factored and form.group < STRIP
    return batch >= 32 or (halved and (batch == 16 or form.mode == MINIMUM))


_stages: dict[tuple[Any, ...], int] = {}
"""Loads in flight that fit into the shared memory of the device, if the chosen number does not."""


def _start(
    grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any], tiles: Tiles, share: int
) -> tuple[int, Any]:
    """Launch, with as many loads in flight as fit; their number, and what was compiled."""
    key = (*constants.values(), tiles, share > 0, arguments[0].dtype, arguments[0].device)
    kernel: Any = linear_kernel
    for stages in range(_stages.get(key, tiles.stages), 0, -1):
        try:
            with current(arguments[0].device):
                compiled = kernel[grid](
                    *arguments,
                    **constants,
                    ROWS=tiles.rows,
                    BATCH=tiles.batch,
                    SPLIT=tiles.split,
                    STAGES=stages,
                    SHARE=share,
                    num_warps=tiles.warps,
                )
        except OutOfResources:
            if stages == 1:
                raise
            _stages[key] = stages - 1
        else:
            return stages, compiled
    raise AssertionError("a kernel is launched with one load in flight at least")
