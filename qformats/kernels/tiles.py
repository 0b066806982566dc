"""The shape of the programs of a fused linear."""

from __future__ import annotations

from typing import NamedTuple

import torch

from qformats.kernels.form import FLOAT, MINIMUM, PLANES, QUAD, STRIP, TABLE, DeviceForm, padded_columns
from qformats.kernels.triton_decode import quads_of_step

__all__ = ["Tiles", "choose_tiles", "fused_rows", "programs", "steps_of"]

_TALL = 1 << 14
"""Rows from which on programs are large for the card whatever their shape."""


class Tiles(NamedTuple):
    """Shape of the programs of a fused linear; the benchmarks show the choices.

    Attributes
    ----------
    rows : int
        Rows of the weight that a program decodes.
    batch : int
        Rows of activations that it multiplies with.
    split : int
        Programs that share the columns of a tile.
    stages : int
        Loads in flight.
    warps : int
        Warps of a program.
    """

    rows: int
    batch: int
    split: int
    stages: int
    warps: int


def programs(device: torch.device) -> int:
    """Programs that keep every multiprocessor busy with two."""
    if device.type != "cuda":
        return 4
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count


def choose_tiles(count: int, form: DeviceForm, device: torch.device, weights: int = 1) -> Tiles:
    """Tiles for `count` rows of activations and a weight.

    Parameters
    ----------
    count : int
        Rows of activations.
    form : DeviceForm
        Of the weight.
    device : torch.device
        Its multiprocessors decide into how many parts columns are split.
    weights : int
        How many such products one launch computes.
    """
    # All numbers below are the fastest of those tried on one H200 (132 multiprocessors; torch 2.11, Triton 3.6) with
    # scripts/tune_gpu.py, for the shapes of 7 and 8 B models: docs/kernels.md has the figures.
    batch = next(size for size in (8, 16, 32, 64) if count <= size or size == 64)
    together = quads_of_step(form.bits)
    fine = 0 < form.group < 64 and form.group < form.columns
    small = -(-form.rows // 128) * 8 <= programs(device)
    # Codes of two planes, and two groups in a strip, take several times the instructions of others.
    long = len(PLANES[form.bits]) > 1 or (form.factored and form.group < STRIP)
    plain = form.bits == 5 and not form.factored
    rounds = 3.0
    shared = 0
    if form.mode == FLOAT and batch <= 16 and (form.bits == 4 or (batch == 16 and form.rows > _TALL)):
        rows, warps, stages, rounds = _for_floats(form, batch, small)
    elif batch == 64:
        # The sums alone take the registers of four warps or more.
        rows, warps, stages = (64, 4, 3) if small else (128, 4, 3) if form.mode == TABLE else (128, 8, 3)
        rounds = 2.0
    elif plain and not small and batch <= 16:
        # Two planes and one level of scales: few warps, which wait for none, hide the long decode best.
        if form.mode == MINIMUM:
            rows, warps, stages, rounds = 128, 2, 2, 5.6 if batch == 8 else 12.0
        elif batch == 8:
            rows, warps, stages, rounds = 32, 2, 2, 12.0
        else:
            rows, warps, stages, shared = 64, 4, 2, 2
    elif long and batch == 8 and not (plain and small):
        # Many programs of one warp hide a decode that is longer still; with minima, which are multiplied too, they run
        # out of registers.
        rows, warps, stages, rounds = 32, 1, 2, 17.0
        if form.mode == MINIMUM and form.bits == 2:
            rows, warps, stages, rounds = (32, 2, 3, 17.0) if small else (128, 2, 2, 5.0)
        elif form.mode == MINIMUM and form.rows > _TALL:
            rows, warps, stages, rounds = 64, 4, 3, 10.0
    elif long or (form.factored and batch == 32):
        rows, warps, stages = 64, 4, 2
    elif form.mode == TABLE:
        # Looking up costs more than reading: more warps hide it better than more loads.
        rows, warps, stages = (64, 4, 3) if small else (128, 4, 3)
        rounds = 9.0
        if not small and not form.factored and form.rows <= _TALL and batch <= 16:
            rows, warps, rounds = 64, 2, 5.9
    else:
        rows, warps, stages = (64, 4, 3) if small and not fine else (128, 2, 4)
        rounds = 4.5 if fine and form.bits == 4 else 3.0
        if fine and form.mode == MINIMUM and not form.factored and batch <= 16:
            stages, rounds = 3, 5.6
    tiles = weights * -(-form.rows // rows) * -(-count // batch)
    wanted = programs(device) * rounds / 3
    split = shared or (4 if small and batch == 64 else 8 if small else round(wanted / tiles))
    if weights > 1:
        split = round(wanted / tiles)
    split = max(1, min(split, 8 if batch < 64 else 4, steps_of(form) * together // 4))
    if split == 1 and stages == 4 and form.mode != FLOAT:
        stages = 5
    return Tiles(rows, batch, split, max(2, stages // (1 if together == 4 else together)), warps)


def _for_floats(form: DeviceForm, batch: int, small: bool) -> tuple[int, int, int, float]:
    """Rows, warps, loads in flight, and rounds of programs, for floats and at most 16 rows of activations."""
    tall = form.rows > _TALL
    if form.bits == 8:
        return 128, 4, 3, 3.0
    if form.group < STRIP:
        # Two groups in a strip take twice the sums.
        if batch == 8:
            return (32, 1, 3, 9.0) if small else (64, 1, 3, 10.2) if tall else (64, 2, 3, 5.9)
        return (128, 2, 3, 5.1) if tall else (128, 4, 3, 2.9)
    if batch == 8:
        return (64, 2, 4, 5.0) if tall else (64, 2, 3, 11.7)
    return (128, 2, 3, 3.0) if tall else (64, 2, 3, 5.9)


def fused_rows(form: DeviceForm) -> int:
    """Rows of activations up to which decoding inside the product is faster than decoding before it.

    Measured on one H200 (torch 2.11, Triton 3.6) with ``scripts/bench_gpu.py --only crossing``; the figures are in
    docs/kernels.md. At 256 nothing is faster inside but the largest weights in 4 bits.
    """
    if form.bits == 5:
        return 64 if form.rows > _TALL else 16
    coarse = form.group >= QUAD or form.group >= form.columns or (form.mode == TABLE and not form.factored)
    return 192 if coarse and len(PLANES[form.bits]) == 1 else 64


def steps_of(form: DeviceForm) -> int:
    """Steps of quads along the columns, of which a split gets some."""
    together: int = quads_of_step(form.bits)
    return padded_columns(form.columns, form.bits) // QUAD // together
