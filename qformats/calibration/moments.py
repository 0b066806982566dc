"""Second moments of the inputs of a linear layer, gathered batch by batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qformats.calibration.team import Team

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Moments"]

_PANEL = 256
"""Columns that are updated together: only the upper triangle is computed."""


class Moments:
    """Running means of ``x xᵀ``, and of ``(y - x) xᵀ`` where `y` is what the unquantized model has instead of `x`.

    Parameters
    ----------
    columns : int
        Inputs of the layer, ``K``.
    device : torch.device
        Where to gather.
    drift : bool
        Whether the second mean is wanted.

    Examples
    --------
    >>> import torch
    >>> from qformats.calibration import Moments
    >>> moments = Moments(2, torch.device("cpu"))
    >>> moments.add(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    >>> moments.tokens, moments.second.tolist()
    (2, [[5.0, 1.0], [1.0, 2.0]])
    """

    def __init__(self, columns: int, device: torch.device, *, drift: bool = False) -> None:
        import torch

        self.tokens = 0
        self._upper = torch.zeros((columns, columns), dtype=torch.float32, device=device)
        self._drift = torch.zeros_like(self._upper) if drift else None

    @classmethod
    def alone(cls, columns: int, device: torch.device) -> Moments:
        """Of inputs that each count by themselves, all the same: what a row of an embedding is multiplied with."""
        found = cls(columns, device)
        found._upper.fill_diagonal_(1.0)
        return found

    def add(self, inputs: Tensor, unquantized: Tensor | None = None) -> None:
        """Take in a batch.

        Parameters
        ----------
        inputs : Tensor
            Float of any width, ``(..., K)``: one row per token. Products are summed in float32.
        unquantized : Tensor, optional
            The same tokens in the unquantized model. Their difference, a correction, is multiplied in the dtype of
            `inputs`.
        """
        columns = self._upper.shape[0]
        rows = inputs.reshape(-1, columns)
        before, self.tokens = self.tokens, self.tokens + rows.shape[0]
        if not rows.shape[0]:
            return
        old, new = before / self.tokens, 1 / self.tokens
        # What a device multiplies in 16 bits it sums in float32: the products are those of float32, many times faster.
        narrow = rows.device.type == "cuda" and rows.dtype.itemsize == 2
        wide = rows if narrow else rows.float()
        panel = max(_PANEL, -(-columns // 8 // _PANEL) * _PANEL)
        for start in range(0, columns, panel):
            stop = min(columns, start + panel)
            part = self._upper[:stop, start:stop]
            if narrow:
                part.mul_(old).add_(_product(rows[:, :stop], rows[:, start:stop]), alpha=new)
            else:
                part.addmm_(wide[:, :stop].t(), wide[:, start:stop], beta=old, alpha=new)
        if self._drift is not None and unquantized is not None:
            change = (unquantized.reshape(-1, columns).float() - rows.float()).to(inputs.dtype)
            del wide
            # In panels too: products are as large as what they are added to.
            for start in range(0, columns, panel):
                stop = min(columns, start + panel)
                product = _product(change[:, start:stop], rows)
                self._drift[start:stop].mul_(old).add_(product, alpha=new)

    def pool(self, team: Team) -> None:
        """Take in what the other processes have gathered."""
        if team.size == 1:
            return
        (total,) = team.total(self.tokens)
        share = self.tokens / max(1.0, total)
        self.tokens = int(total)
        team.sum(self._upper.mul_(share))
        if self._drift is not None:
            team.sum(self._drift.mul_(share))

    @property
    def diagonal(self) -> Tensor:
        """Mean of every input squared, float32 ``(K,)``."""
        diagonal: Tensor = self._upper.diagonal()
        return diagonal

    @property
    def second(self) -> Tensor:
        """Mean of ``x xᵀ``, float32 ``(K, K)``, squared input units; half the Hessian of a layer's squared error.

        No copy: it changes with the next batch.
        """
        columns = self._upper.shape[0]
        for start in range(0, columns, _PANEL):
            stop = min(columns, start + _PANEL)
            inner = self._upper[start:stop, start:stop]
            inner.copy_(inner.triu() + inner.triu(1).t())
            self._upper[stop:, start:stop] = self._upper[start:stop, stop:].t()
        return self._upper

    def release(self) -> Tensor:
        """Hand over :attr:`second`, so that its memory is freed once the receiver is done with it."""
        second = self.second
        self._upper = second.new_empty((0, 0))
        return second

    @property
    def drift(self) -> Tensor | None:
        """Mean of ``(y - x) xᵀ``, float32 ``(K, K)``; ``None`` if it was not wanted."""
        return self._drift


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Float32 ``leftᵀ @ right``, of two matrices of one dtype."""
    import torch

    if left.device.type == "cuda" and left.dtype.itemsize == 2:
        # Not rounded to 16 bits, in which the products of large inputs would be infinite.
        return torch.mm(left.t(), right, out_dtype=torch.float32)
    return (left.t() @ right).float()
