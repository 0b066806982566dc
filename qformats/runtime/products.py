"""Products of a few vectors with a packed weight on a CPU, by the format's own code for rows."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from qformats.runtime.pieces import multiplied
from qformats.runtime.steps import FEW, threads
from qformats.work.crew import share

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

    from qformats.interfaces.packer import RowProducts
    from qformats.runtime.layer import PackedLayer

__all__ = ["product"]

_THREAD = 1 << 20
"""Weights that are worth a thread: it is woken in the time in which about so many are multiplied."""

_prepared: WeakKeyDictionary[PackedLayer, tuple[tuple[int, ...], RowProducts | None]] = WeakKeyDictionary()
"""By layer: where its fields are, and what multiplies them."""


def _rows_of(layer: PackedLayer) -> RowProducts | None:
    at = layer.addresses
    found = _prepared.get(layer)
    if found is None or found[0] != at:
        packed = layer.packed()
        found = _prepared[layer] = at, packed.packer.row_products(packed)
    return found[1]


def product(x: Tensor, layer: PackedLayer) -> Tensor:
    """``x @ W.T`` without gradients: ``(..., K)`` to ``(..., N)``, in the dtype of `x`, all on a CPU.

    Parameters
    ----------
    x : Tensor
        float32, float16 or bfloat16.
    layer : PackedLayer
        Holds the weight, packed.
    """
    # The decorator alone would cost each call as much as a small product.
    return _uncompiled(x, layer) if torch.compiler.is_compiling() else _product(x, layer)


def _product(x: Tensor, layer: PackedLayer) -> Tensor:
    # A model of 135 million weights calls this 211 times for a token, each time for as little as 10 microseconds of
    # work: the usual case takes as few steps as there are.
    rows, columns = layer.shape
    count = x.numel() // columns if columns else 0
    run = _rows_of(layer) if 0 < count <= FEW else None
    if run is None:
        decoded: Tensor = multiplied(x, layer.packed())
        return decoded
    values = x.detach() if x.requires_grad else x
    if x.dtype != torch.float32 or not x.is_contiguous():
        values = values.to(torch.float32).contiguous()
    out = torch.empty((*x.shape[:-1], rows), dtype=torch.float32)
    given, targets = values.numpy().reshape(count, columns), out.numpy().reshape(count, rows)
    work = rows * columns
    workers = 1 if work < 2 * _THREAD else min(threads(), work // _THREAD)
    if workers > 1:
        share(lambda start, stop: _multiply(run, given, targets, start, stop), rows, workers)
    else:
        _multiply(run, given, targets, 0, rows)
    return out if x.dtype == torch.float32 else out.to(x.dtype)


def _multiply(
    run: RowProducts, values: NDArray[float32], targets: NDArray[float32], start: int, stop: int
) -> None:
    for number in range(len(values)):
        run(values[number], targets[number], start, stop)


@torch.compiler.disable  # type: ignore[untyped-decorator] # compiled code of packers
def _uncompiled(x: Tensor, layer: PackedLayer) -> Tensor:
    return _product(x, layer)
