"""Functions in place of a model's methods."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["Bound"]


class Bound:
    """A function whose first argument is a model, as an attribute of that model.

    It does not keep the model alive, which would otherwise refer to itself: gigabytes would wait for the garbage
    collector. A copy of the model gets one of the copy.

    Parameters
    ----------
    function : callable
        At the top of its module, so that models can be pickled.
    model : torch.nn.Module
        What it is called with.

    Examples
    --------
    >>> import torch
    >>> from qformats.runtime.bound import Bound
    >>> model = torch.nn.Linear(2, 3)
    >>> model.rows = Bound(lambda model, more: model.out_features + more, model)
    >>> model.rows(1)
    4
    """

    def __init__(self, function: Callable[..., Any], model: Any) -> None:
        self._function, self._model = function, weakref.ref(model)

    def __reduce__(self) -> Any:
        return Bound, (self._function, self._model())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function with the model, and with what is given."""
        return self._function(self._model(), *args, **kwargs)
