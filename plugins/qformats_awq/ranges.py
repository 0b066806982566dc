"""The search for ranges: how much is cut off each block's largest weights, by what that does to a layer's output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qformats import GridParams

if TYPE_CHECKING:
    from torch import Tensor

    from qformats import Grid, QuantizedTensor
    from qformats.interfaces import Packer

__all__ = ["output_error", "with_best_ranges"]

_STEPS = 10
"""Ranges that are tried, as many as AutoAWQ tries: from the whole down to 55 % of it."""
_STEP = 0.05
_ROUNDS = 2
"""How often each block is looked at: the second time, all others have their final ranges."""
_WEIGHTS = 1 << 22
"""Weights whose ranges are searched at a time; each is kept once per range."""


_ROWS = 1 << 24
"""Weights whose errors are multiplied at a time."""


def output_error(change: Tensor, second: Tensor) -> float:
    """Squared error of a layer's output, ``tr(D H Dᵀ)``: mean over tokens, summed over outputs."""
    step = max(1, _ROWS // max(1, change.shape[1]))
    parts = (change[start : start + step] for start in range(0, change.shape[0], step))
    return sum(float(((part @ second) * part).sum()) for part in parts)


def with_best_ranges(weight: Tensor, packer: Packer, second: Tensor) -> QuantizedTensor:
    """Round a weight with ranges of its blocks that disturb the layer's output least.

    The error is ``tr((Q - W) H (Q - W)ᵀ)``, of which each block takes its part with the errors of all other blocks of
    its row as they are; AutoAWQ looks at each block alone. Ranges are those of the format's own rule for a weight whose
    largest elements are cut off, and that of its fit weighed by the inputs. Where blocks do not choose by themselves
    (scales that are quantized together, or shared by rows), it is one of the rule and the fit for the whole weight.

    Parameters
    ----------
    weight : Tensor
        float32, ``(N, K)``.
    packer : Packer
        A format with a grid.
    second : Tensor
        float32, ``(K, K)``: second moments of the inputs.

    Examples
    --------
    >>> import torch, qformats
    >>> from qformats_awq.ranges import with_best_ranges
    >>> weight = torch.full((1, 32), 0.3)
    >>> weight[0, 0] = 2.0
    >>> packer = qformats.packer("gguf:q4_0")
    >>> second = torch.eye(32)
    >>> second[0, 0] = 0.01  # that column's input is small
    >>> found, plain = with_best_ranges(weight, packer, second), packer.grid.quantize(weight)
    >>> [round(float(each.dequantize()[0, 1]), 2) for each in (plain, found)]
    [0.25, 0.3]
    """
    import torch

    grid = packer.grid
    assert grid is not None
    importance = second.diagonal().contiguous()
    columns = int(weight.shape[1])
    width = grid.block_size or columns
    if grid.fixed:
        return packer.quantize_reference(weight)
    if not grid.independent or grid.block_rows != 1 or grid.reordered or columns % width:
        tried = (packer.quantize_reference(weight), grid.quantize(weight, importance))
        return min(tried, key=lambda found: output_error(found.dequantize() - weight, second))
    step = max(1, _WEIGHTS // columns)
    found = [
        _params(weight[start : start + step], grid, second, importance, width)
        for start in range(0, int(weight.shape[0]), step)
    ]
    params = GridParams(
        torch.cat([each.scale for each in found]),
        _joined([each.zero_point for each in found]),
        _joined([each.minimum for each in found]),
    )
    return grid.quantized(grid.encode(weight, params), params)


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    import torch

    held = [part for part in parts if part is not None]
    return torch.cat(held) if held else None


def _params(weight: Tensor, grid: Grid, second: Tensor, importance: Tensor, width: int) -> GridParams:
    """Parameters of some rows."""
    import torch

    rows, columns = weight.shape
    blocks = columns // width
    largest = weight.view(rows, blocks, width).abs().amax(2)
    tried = [grid.reference(weight)[1]]
    tried += [grid.reference(_cut(weight, largest * (1 - _STEP * step)))[1] for step in range(1, _STEPS)]
    tried.append(grid.weighted(weight, importance)[1])
    errors = torch.stack([grid.decode(grid.encode(weight, params), params) - weight for params in tried])
    chosen = _chosen(errors, second, width)
    zeros = [params.zero_point for params in tried if params.zero_point is not None]
    minima = [params.minimum for params in tried if params.minimum is not None]
    return GridParams(
        _picked([params.scale for params in tried], chosen),
        _picked(zeros, chosen).to(zeros[0].dtype) if zeros else None,
        _picked(minima, chosen) if minima else None,
    )


def _picked(values: Sequence[Tensor], chosen: Tensor) -> Tensor:
    """One of the parameters, each block's of its candidate, float32."""
    import torch

    # Grids that may have blocks over several rows have all in one dimension.
    together = torch.stack([each.float() for each in values]).view(len(values), *chosen.shape)
    return together.gather(0, chosen.unsqueeze(0)).view(values[0].shape)


def _chosen(errors: Tensor, second: Tensor, width: int) -> Tensor:
    """Which candidate each block takes, int64 ``(N, blocks)``, of errors ``(candidates, N, K)``."""
    import torch

    _, rows, columns = errors.shape
    blocks = columns // width
    chosen = torch.zeros((rows, blocks), dtype=torch.int64, device=errors.device)
    error = errors[0].clone()
    product = error @ second
    each = torch.arange(rows, device=errors.device)
    for _ in range(_ROUNDS):
        before = chosen.clone()
        for block in range(blocks):
            part = slice(block * width, (block + 1) * width)
            inner, mine, now = second[part, part], errors[:, :, part], chosen[:, block]
            # What all other blocks contribute to the gradient of this one.
            others = product[:, part] - error[:, part] @ inner
            losses = ((mine @ inner + 2 * others) * mine).sum(2)
            best = losses.argmin(0)
            # Sums in another order are no reason to move.
            best = torch.where(losses[best, each] < losses[now, each], best, now)
            if torch.equal(best, now):
                continue
            new = mine[best, each]
            product += (new - error[:, part]) @ second[part]
            error[:, part] = new
            chosen[:, block] = best
        if torch.equal(before, chosen):
            break
    return chosen


def _cut(weight: Tensor, limit: Tensor) -> Tensor:
    rows, blocks = limit.shape
    limit = limit.unsqueeze(2)
    return weight.view(rows, blocks, -1).clamp(-limit, limit).view_as(weight)
