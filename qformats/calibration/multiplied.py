"""What a block multiplies with its parameters, whichever module does it. Imported where a block runs, for torch is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Multiplied"]

_PRODUCTS = {
    **dict.fromkeys(("linear", "matmul", "__matmul__", "mm", "bmm"), (0, 1)),
    "addmm": (1, 2),
}
"""Functions of torch that multiply, and which of their arguments are inputs and weights."""


class Multiplied(TorchFunctionMode):
    """Notes what is multiplied with which parameters, as long as it is entered.

    Parameters
    ----------
    parameters : mapping of str to torch.nn.Parameter
        By name; those of two or three dimensions are looked for.

    Attributes
    ----------
    found : dict
        By name of a parameter: each tensor that was multiplied with it, and whether the parameter's columns are the
        last dimension, as in a matrix ``[out, in]``.
    """

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        super().__init__()
        self._watched = {
            value.untyped_storage().data_ptr(): (name, value)
            for name, value in parameters.items()
            if value.ndim in (2, 3)
        }
        self.found: dict[str, list[tuple[Tensor, bool]]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        where = _PRODUCTS.get(getattr(func, "__name__", ""))
        if where is not None and len(args) > where[1]:
            inputs, weight = args[where[0]], args[where[1]]
            name, parameter = self._watched.get(weight.untyped_storage().data_ptr(), ("", None))
            if parameter is not None:
                last = self._columns_last(func.__name__, weight, parameter)
                self.found.setdefault(name, []).append((inputs.detach().clone(), last))
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _columns_last(function: str, weight: Tensor, parameter: Tensor) -> bool:
        """Whether the whole parameter is multiplied, as the matrix ``[out, in]`` that a part has its factors in."""
        if weight.ndim != 2 or parameter.ndim != 2 or weight.numel() != parameter.numel():
            return False
        if function == "linear":
            return weight.stride() == parameter.stride()
        # Conv1D has it as it is, of which a part sees the transpose; a router may have the transpose of its own.
        return function == "addmm" or weight.stride() != parameter.stride()
