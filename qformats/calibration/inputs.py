"""Sums of squares of what is multiplied with the weights of a block, noted while the block runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch.overrides import TorchFunctionMode

from qformats.interfaces.importance import ColumnSums

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["InputSums", "InputsThatReach"]

_PRODUCTS = {
    **dict.fromkeys(("linear", "matmul", "__matmul__", "mm", "bmm"), (0, 1)),
    "addmm": (1, 2),
}
"""Functions of torch that multiply, and which of their arguments are inputs and weights."""


class InputSums(TorchFunctionMode):
    """Notes what is multiplied with parameters, whichever module does it: linear layers, routers, experts in a stack.

    Parameters
    ----------
    module : torch.nn.Module
        The block, loaded. It is watched while this context is entered.
    """

    def __init__(self, module: Any) -> None:
        super().__init__()
        self._watched = {
            value.untyped_storage().data_ptr(): (name, value)
            for name, value in module.named_parameters()
            if value.ndim in (2, 3)
        }
        self._squares: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._last: tuple[Tensor, Tensor] | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Note, and compute."""
        where = _PRODUCTS.get(getattr(func, "__name__", ""))
        if where is not None and len(args) > where[1]:
            self._note(args[where[0]], args[where[1]])
        return func(*args, **(kwargs or {}))

    def _note(self, inputs: Tensor, weight: Tensor) -> None:
        name, parameter = self._watched.get(weight.untyped_storage().data_ptr(), ("", None))
        if parameter is None:
            return
        import torch

        stack = parameter.ndim == 3
        matrices = int(parameter.shape[0]) if stack else 1
        columns = int(inputs.shape[-1])
        if name not in self._squares:
            self._squares[name] = torch.zeros((matrices, columns), dtype=torch.float64, device=inputs.device)
            self._counts[name] = torch.zeros(matrices, dtype=torch.float64, device=inputs.device)
        if stack and weight.ndim == 3:
            # Every expert gets a row for every token, of zeros where it is not concerned.
            rows = inputs.reshape(matrices, -1, columns)
            self._squares[name] += self.counted(rows.float()).sum(1, dtype=torch.float64)
            self._counts[name] += rows.any(-1).sum(1)
            return
        number = weight.storage_offset() * matrices // parameter.numel() if stack else 0
        self._squares[name][number] += self._sum(inputs)
        self._counts[name][number] += inputs.numel() // columns

    def counted(self, rows: Tensor) -> Tensor:
        """What is summed of every input, float32."""
        return rows.square()

    def _sum(self, inputs: Tensor) -> Tensor:
        """Sums over tokens; queries, keys and values have one input, which is summed once."""
        import torch

        if self._last is None or self._last[0] is not inputs:
            rows = inputs.reshape(-1, inputs.shape[-1]).float()
            self._last = inputs, self.counted(rows).sum(0, dtype=torch.float64)
        return self._last[1]

    def found(self) -> Iterator[tuple[str, ColumnSums]]:
        """Sums for each parameter, by its name in the block."""
        self._last = None
        for name, squares in self._squares.items():
            yield name, ColumnSums(squares.cpu().numpy(), self._counts[name].cpu().numpy())

    @property
    def missed(self) -> list[str]:
        """Parameters that nothing was multiplied with."""
        return [name for name, _ in self._watched.values() if name not in self._squares]


class InputsThatReach(InputSums):
    """Counts the tokens at which each input reaches a threshold.

    Parameters
    ----------
    module : torch.nn.Module
        The block, loaded.
    threshold : float
        A magnitude.
    """

    def __init__(self, module: Any, threshold: float) -> None:
        super().__init__(module)
        self._threshold = threshold

    def counted(self, rows: Tensor) -> Tensor:
        """One where it does."""
        return (rows.abs() >= self._threshold).float()
