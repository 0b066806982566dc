"""Casts between plain float formats that notice what the target cannot hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qformats.dtypes import dtype_name, torch_dtype
from qformats.errors import NonFiniteError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

__all__ = ["as_numpy", "cast", "require_finite"]

_KERNEL = ("f32", "f16", "bf16")


def as_numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    """View of a contiguous CPU tensor for the kernels, which read bf16 as uint16."""
    import torch

    values = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
    return values.numpy()  # type: ignore[no-any-return]


def _report(tensor: Tensor, count: int, hint: str | None = None) -> NonFiniteError:
    import torch

    flat = tensor.flatten()
    index = int((~torch.isfinite(flat)).nonzero()[0])
    found = (
        f"{count} of {flat.numel()} values are not finite, the first is {float(flat[index])} at index {index}"
    )
    return NonFiniteError(found, hint)


def require_finite(tensor: Tensor) -> None:
    """Refuse NaN and infinity.

    Raises
    ------
    NonFiniteError
        Saying how many there are and where the first one is.
    """
    import torch

    if not tensor.is_floating_point():
        return
    if tensor.device.type == "cpu" and dtype_name(tensor.dtype) in _KERNEL:
        from qformats.kernels import cpu

        count = cpu.count_nonfinite(as_numpy(tensor.contiguous()))
    else:
        count = int((~torch.isfinite(tensor)).sum())
    if count:
        hint = "repair the model: such weights make every format meaningless"
        raise _report(tensor, count, hint)


def cast(tensor: Tensor, dtype: str) -> Tensor:
    """Convert to another float dtype, rounding to nearest even.

    Parameters
    ----------
    tensor : Tensor
        Any float dtype and shape. Not modified.
    dtype : str
        Short name: ``f32``, ``f16``, ``bf16``, ``f64``.

    Returns
    -------
    Tensor
        Contiguous, same shape and device.

    Raises
    ------
    NonFiniteError
        If a value is not finite, or too large for `dtype`.
    """
    import torch

    source = tensor.contiguous()
    if source.device.type == "cpu" and dtype in _KERNEL and dtype_name(source.dtype) in _KERNEL:
        from qformats.kernels import cpu

        values = torch.empty(source.shape, dtype=torch_dtype(dtype))
        count = cpu.cast(as_numpy(source), as_numpy(values))
    else:
        values = source.to(torch_dtype(dtype))
        count = int((~torch.isfinite(values)).sum())
    if count:
        require_finite(source)
        largest = float(source.abs().max())
        raise NonFiniteError(
            f"{count} values are too large for {dtype}, the largest is {largest:g}",
            "keep this tensor in bf16 or f32 (--tensor-type 'NAME=bf16')",
        )
    return values
