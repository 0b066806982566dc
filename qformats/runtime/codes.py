"""The codes of a weight as other code sees them: to inspect, not to compute with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from qformats.errors import ConfigError

__all__ = ["Codes"]

_LOOKS = frozenset(
    "device dtype shape ndim layout is_meta is_cuda is_cpu requires_grad is_leaf grad grad_fn nbytes itemsize "
    "size dim numel stride element_size is_floating_point is_complex is_contiguous get_device data_ptr "
    "__repr__ __hash__ __len__".split()
)
"""Attributes of codes that do not need their values."""


class Codes(Tensor):
    """A view of codes that tells where and how large they are, and refuses everything else.

    Codes may have the shape of the weights. Code that takes them for numbers, as PEFT does when it merges an adapter or
    starts one from the weight, would get a wrong model without an error.
    """

    _is_hf_initialized = True
    """Transformers' own initialisation leaves tensors alone that say this."""

    @classmethod
    def of(cls, held: Tensor) -> Codes:
        """View of a tensor that holds codes, in the same memory."""
        return held.detach().as_subclass(cls)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer what does not need values.

        Raises
        ------
        ConfigError
            If values are needed.
        """
        name = getattr(func, "__name__", str(func))
        if name in ("__get__", "__set__"):
            # Attributes of tensors are descriptors.
            asked = getattr(getattr(func, "__self__", None), "__name__", name)
            name = asked if name == "__get__" else f"an assignment to {asked}"
        if name in _LOOKS:
            from qformats.work.compat import DisableTorchFunctionSubclass

            with DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        raise ConfigError(
            "weight of a packed layer",
            name,
            "nothing that computes with its codes, which are not values of the model",
            "Merge adapters with qformats.merge_adapter, and start them without the weight (plain LoRA, no DoRA or "
            "initialisation from the weight); layer.dequantize() gives the values",
        )
