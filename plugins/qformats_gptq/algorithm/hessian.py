"""The matrix that tells what an error in each weight costs, factored."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from qformats.errors import NonFiniteError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Hessian", "factor"]


@dataclass(frozen=True, eq=False)
class Hessian:
    """A damped ``H``, with its columns in the order in which they are rounded.

    Attributes
    ----------
    matrix : Tensor
        float32, ``(K, K)``, positive definite.
    root : Tensor
        float32, ``(K, K)``, upper triangular: ``H = root @ rootᵀ``.
    order : Tensor or None
        int64, ``(K,)``: column ``i`` here is column ``order[i]`` of the weight; ``None`` if none was moved.
    dead : Tensor
        bool, ``(K,)``: inputs that are always zero, in the weight's order.
    damping : float
        What was added to the diagonal, as a share of its mean.
    """

    matrix: Tensor
    root: Tensor
    order: Tensor | None
    dead: Tensor
    damping: float

    @cached_property
    def inverse_order(self) -> Tensor | None:
        """Column ``i`` of the weight is column ``inverse_order[i]`` here."""
        return None if self.order is None else self.order.argsort()

    @cached_property
    def importance(self) -> Tensor:
        """What an error in one column costs after all others have made up for it, float32 ``(K,)``.

        It is the inverse of the diagonal of ``H⁻¹``.
        """
        import torch

        columns = self.root.shape[0]
        total = torch.zeros(columns, dtype=torch.float32, device=self.root.device)
        # Columns of the inverse root in panels: the whole of it is as large as H.
        for start in range(0, columns, _PANEL):
            stop = min(columns, start + _PANEL)
            unit = torch.zeros((columns, stop - start), dtype=torch.float32, device=self.root.device)
            unit[torch.arange(start, stop), torch.arange(stop - start)] = 1
            # H⁻¹ = root⁻ᵀ root⁻¹, so its diagonal holds the squared columns of root⁻¹.
            total[start:stop] = torch.linalg.solve_triangular(self.root, unit, upper=True).square().sum(0)
        return 1 / total

    def ordered(self, values: Tensor) -> Tensor:
        """Columns of a matrix in the order of this one."""
        return values if self.order is None else values[:, self.order]

    def restored(self, values: Tensor) -> Tensor:
        """Columns of a matrix in the order of the weight."""
        return values if self.inverse_order is None else values[:, self.inverse_order]

    def solve(self, values: Tensor) -> Tensor:
        """``values @ H⁻¹``, both float32 ``(N, K)`` in this order."""
        import torch

        # X root rootᵀ = values: first the transposed factor, then the other one.
        half: Tensor = torch.linalg.solve_triangular(self.root.t(), values, upper=False, left=False)
        solved: Tensor = torch.linalg.solve_triangular(self.root, half, upper=True, left=False)
        return solved

    def loss(self, errors: Tensor) -> Tensor:
        """Squared output error of each row of weight errors, float32 ``(N,)``."""
        return (errors @ self.root).square_().sum(1)


_PANEL = 512


def factor(second: Tensor, damping: float, *, reorder: bool) -> Hessian:
    """Damp and factor a matrix of second moments.

    Parameters
    ----------
    second : Tensor
        float32, ``(K, K)``, symmetric. Not modified.
    damping : float
        Share of the mean of the diagonal that is added to it; more if the matrix cannot be factored with it.
    reorder : bool
        Whether to begin with the most important columns.

    Raises
    ------
    NonFiniteError
        If it holds NaN or infinity.
    """
    import torch

    diagonal = second.diagonal().clone()
    if not bool(diagonal.isfinite().all()):
        bad = int((~diagonal.isfinite()).nonzero()[0])
        raise NonFiniteError(
            f"the second moment of input {bad} is {float(diagonal[bad])}", "calibrate in f32"
        )
    dead = diagonal <= 0
    order = torch.argsort(diagonal, descending=True, stable=True) if reorder else None
    matrix = second.clone() if order is None else second[order][:, order]
    # It is as large as everything else here; the caller may have given it away.
    del second
    mean = float(diagonal.mean()) or 1.0
    inner = matrix.diagonal()
    inner.masked_fill_(dead if order is None else dead[order], mean)
    share = max(damping, 1e-8)
    added = 0.0
    while True:
        inner.add_((share - added) * mean)
        added = share
        # The factor of the matrix read backwards is the upper one that H = root @ rootᵀ asks for.
        found, failed = torch.linalg.cholesky_ex(matrix.flip(0, 1))
        if not int(failed) and bool(found.diagonal().isfinite().all()):
            return Hessian(matrix, found.flip(0, 1), order, dead, added)
        share = max(2 * share, 0.01)
        if share > _LIMIT:
            # Nothing but the diagonal can be trusted: each column by itself.
            matrix = torch.diag(inner.clone())
            return Hessian(matrix, matrix.sqrt(), order, dead, added)


_LIMIT = 100.0
"""Share of the diagonal beyond which a matrix is given up."""
