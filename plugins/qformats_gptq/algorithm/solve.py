"""One layer from its weight and the second moments of its inputs to codes and parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qformats import Grid, GridParams, QuantizedTensor
from qformats_gptq.algorithm.fit import fit
from qformats_gptq.algorithm.hessian import Hessian
from qformats_gptq.algorithm.levels import Levels
from qformats_gptq.algorithm.products import merged_products
from qformats_gptq.algorithm.refine import refit
from qformats_gptq.algorithm.sweep import sweep

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Method", "Solution", "solve"]


_WORTH = 3e-3
"""Share of the loss that a round must save for another one to follow."""


@dataclass(frozen=True)
class Method:
    """What may be chosen about the algorithm.

    Attributes
    ----------
    damping : float
        Share of the mean of the Hessian's diagonal that is added to it.
    reorder : bool
        Whether to begin with the most important columns. Blocks stay where they are (static groups), unless the format
        stores which block each column belongs to.
    search : bool
        Whether to search for the range of every block.
    rounds : int
        How often parameters are fitted to the codes, and codes chosen again; 0 for GPTQ alone.
    correct : bool
        Whether to aim at what the unquantized model computes, although the inputs come from the quantized one.
    """

    damping: float = 0.01
    reorder: bool = True
    search: bool = True
    rounds: int = 4
    correct: bool = True


@dataclass(frozen=True, eq=False)
class Solution:
    """A quantized layer.

    Attributes
    ----------
    quantized : QuantizedTensor
        On the grid.
    params : GridParams
        Those that it was made of.
    loss, signal : float
        ``tr(E H Eᵀ)`` and ``tr(W H Wᵀ)``, with the damped ``H``.
    """

    quantized: QuantizedTensor
    params: GridParams
    loss: float
    signal: float


@dataclass(frozen=True, eq=False)
class _State:
    """Parameters and codes, columns in the order in which blocks hold them."""

    params: GridParams
    codes: Tensor
    """uint8."""
    loss: Tensor
    """Of each row."""


def solve(
    weight: Tensor, grid: Grid, hessian: Hessian, method: Method, target: Tensor | None = None
) -> Solution:
    """Choose parameters and codes of a weight.

    Parameters
    ----------
    weight : Tensor
        float32, ``(N, K)``. Not modified.
    grid : Grid
        Any one.
    hessian : Hessian
        Of the layer's inputs.
    method : Method
        How.
    target : Tensor, optional
        float32, ``(N, K)``: what to come close to instead of `weight`, whose output is still the measure of the error.
    """
    goal = weight if target is None else target
    if bool(hessian.dead.any()):
        # These inputs are always zero: whatever their weights, nothing changes; 0 costs least elsewhere.
        goal = goal.masked_fill(hessian.dead, 0.0)
    # Where the format stores the block of each column, blocks are made of columns that follow each other in the
    # order of rounding; else they stay, and only the rounding goes in that order.
    moved = hessian.order is not None and bool(getattr(grid, "reordered", False))
    frame = _Frame(hessian, moved)
    goal = frame.enter(goal)
    params = fit(grid, goal, frame.importance, search=method.search)
    state = _rounded(grid, params, goal, frame)
    for turn in range(method.rounds):
        better = _improved(grid, state, goal, frame, trials=turn == 0)
        if better is None:
            break
        gain = float(state.loss.sum() - better.loss.sum())
        state = better
        if gain <= _WORTH * float(state.loss.sum()):
            break
    quantized = grid.quantized(frame.leave(state.codes), state.params)
    if moved:
        assert hessian.inverse_order is not None
        groups = (hessian.inverse_order // grid.columns(weight)).int()
        quantized = replace(quantized, g_idx=groups)
    signal = float(hessian.loss(hessian.ordered(weight)).sum())
    return Solution(quantized, state.params, float(state.loss.sum()), signal)


class _Frame:
    """Two orders of columns: that of the blocks, and that of the rounding (the Hessian's)."""

    def __init__(self, hessian: Hessian, moved: bool) -> None:
        self.hessian = hessian
        self.moved = moved
        self.importance = hessian.importance if moved else hessian.restored(hessian.importance[None])[0]
        self.places = None if moved else hessian.inverse_order

    def enter(self, weight: Tensor) -> Tensor:
        """From the weight's order to the blocks'."""
        return self.hessian.ordered(weight) if self.moved else weight

    def leave(self, values: Tensor) -> Tensor:
        """From the blocks' order to the weight's."""
        return self.hessian.restored(values) if self.moved else values

    def to_rounding(self, values: Tensor) -> Tensor:
        """From the blocks' order to that of the rounding."""
        return values if self.moved else self.hessian.ordered(values)

    def from_rounding(self, values: Tensor) -> Tensor:
        """From the order of the rounding to the blocks'."""
        return values if self.moved else self.hessian.restored(values)

    def levels(self, levels: Levels) -> Levels:
        """Levels in the order of the rounding."""
        order = self.hessian.order
        return levels if self.moved or order is None else levels.columns(order).contiguous()

    def loss(self, errors: Tensor) -> Tensor:
        """Loss of each row, from errors in the blocks' order."""
        return self.hessian.loss(self.to_rounding(errors))


def _rounded(grid: Grid, params: GridParams, goal: Tensor, frame: _Frame) -> _State:
    """Round by GPTQ's own pass."""
    weight = frame.to_rounding(goal).contiguous()
    levels = frame.levels(Levels.of(grid, params, goal))
    codes, errors = weight.new_zeros(weight.shape), weight.new_zeros(weight.shape)
    sweep(weight, levels, frame.hessian.root, codes, errors, first=True)
    return _State(params, frame.from_rounding(codes.byte()), frame.hessian.loss(errors))


def _improved(grid: Grid, state: _State, goal: Tensor, frame: _Frame, *, trials: bool) -> _State | None:
    """Fit parameters to codes, then choose codes again; rows that got worse are left as they were."""
    matrix = frame.hessian.matrix
    params = refit(grid, state.params, goal, state.codes.float(), matrix, frame.places, trials=trials)
    params = params or state.params
    weight = frame.to_rounding(goal).contiguous()
    levels = frame.levels(Levels.of(grid, params, goal))
    codes = frame.to_rounding(state.codes).float().contiguous()
    errors = weight - levels.values(codes)
    sweep(weight, levels, frame.hessian.matrix, codes, errors, first=False)
    loss = frame.hessian.loss(errors)
    found = _State(params, frame.from_rounding(codes.byte()), loss)
    better = loss < state.loss
    if grid.flat or params.scale.ndim != 2:
        # Parameters of several rows depend on each other: all or nothing.
        return found if float(loss.sum()) < float(state.loss.sum()) else None
    return _merged(grid, better, found, state) if bool(better.any()) else None


def _merged(grid: Grid, better: Tensor, new: _State, old: _State) -> _State:
    """Rows that are better from the new state, the others from the old one."""

    def rows(yes: Tensor, no: Tensor) -> Tensor:
        return yes.where(better[:, None], no)

    codes, loss = rows(new.codes, old.codes), new.loss.where(better, old.loss)
    if grid.nested(new.params) is not None:
        return _State(merged_products(grid, better[:, None], new.params, old.params), codes, loss)
    minimum = None
    if new.params.minimum is not None and old.params.minimum is not None:
        minimum = rows(new.params.minimum, old.params.minimum)
    # Zero points are not fitted: both have the same.
    params = GridParams(rows(new.params.scale, old.params.scale), new.params.zero_point, minimum)
    return _State(params, codes, loss)
