"""Plain floats: casts that detect values which the target, or a kernel, cannot hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qformats.errors import NonFiniteError
from qformats.numbers.dtypes import dtype_name, torch_dtype
from qformats.numbers.finite import too_large
from qformats.numbers.memory import empty

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from qformats.kernels.cpu import Outcome

__all__ = ["as_numpy", "cast", "refuse", "require_finite", "too_large"]

_KERNEL = ("f32", "f16", "bf16")


def as_numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    """View of a contiguous CPU tensor for the kernels, which read bf16 as uint16.

    Examples
    --------
    >>> import torch
    >>> from qformats.kernels.dense import as_numpy
    >>> as_numpy(torch.ones(2, dtype=torch.bfloat16))
    array([16256, 16256], dtype=uint16)
    """
    import torch

    values = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
    return values.numpy()


def _report(tensor: Tensor, count: int, hint: str | None = None) -> NonFiniteError:
    import torch

    flat = tensor.flatten()
    index = int((~torch.isfinite(flat)).nonzero()[0])
    found = (
        f"{count} of {flat.numel()} values are not finite; the first is {float(flat[index])} at index {index}"
    )
    return NonFiniteError(found, hint)


def require_finite(tensor: Tensor) -> None:
    """Refuse NaN and infinity.

    Raises
    ------
    NonFiniteError
        Saying how many there are and where the first one is.

    Examples
    --------
    >>> import torch
    >>> from qformats.errors import NonFiniteError
    >>> from qformats.kernels.dense import require_finite
    >>> try:
    ...     require_finite(torch.tensor([1.0, float("nan")]))
    ... except NonFiniteError as error:
    ...     print(error)
    1 of 2 values are not finite; the first is nan at index 1. Repair the model: no format can hold such
    weights meaningfully.
    """
    import torch

    if not tensor.is_floating_point():
        return
    if tensor.device.type == "cpu" and dtype_name(tensor.dtype) in _KERNEL:
        from qformats.kernels import cpu

        count = cpu.count_nonfinite(as_numpy(tensor.contiguous()))
    elif tensor.numel() and not bool(torch.stack(torch.aminmax(tensor)).isfinite().all()):
        # Only then: counting takes a GPU four times as long as the smallest and the largest, which tell as much.
        count = int((~torch.isfinite(tensor)).sum())
    else:
        count = 0
    if count:
        hint = "repair the model: no format can hold such weights meaningfully"
        raise _report(tensor, count, hint)


def refuse(outcome: Outcome, weight: Tensor, blocks: int, dtype: str, what: str = "blocks") -> None:
    """Refuse values that a kernel could not quantize.

    Parameters
    ----------
    outcome : Outcome
        What the kernel counted.
    weight : Tensor
        What it read.
    blocks : int
        How many blocks the weight has.
    dtype : str
        What scales are stored in.
    what : str
        What shares a scale: ``"blocks"``, ``"rows"``.

    Raises
    ------
    NonFiniteError
        If a weight is NaN or infinite, or so large that a scale is beyond `dtype`.

    Examples
    --------
    >>> import torch
    >>> from qformats.errors import NonFiniteError
    >>> from qformats.kernels.cpu import Outcome
    >>> from qformats.kernels.dense import refuse
    >>> refuse(Outcome(nonfinite=0, overflow=0), torch.ones(2, 32), blocks=2, dtype="f16")
    >>> try:
    ...     refuse(Outcome(nonfinite=0, overflow=1), torch.full((2, 32), 1e9), blocks=2, dtype="f16")
    ... except NonFiniteError as error:
    ...     print(error)
    1 of 2 blocks need a scale beyond f16; the largest weight is 1e+09 at index 0. Keep this tensor in bf16 or
    f32 (--tensor-type 'NAME=bf16').
    """
    if outcome.nonfinite:
        require_finite(weight)
    if outcome.overflow:
        raise too_large(f"{outcome.overflow} of {blocks} {what} need a scale beyond {dtype}", weight)


def _to_odd(values: Tensor) -> Tensor:
    """Round float64 to float32 so that a second rounding, to a half, gives what one rounding would.

    Inexact results get an odd last bit (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums").
    """
    import torch

    near = values.to(torch.float32)
    inexact = (near.to(torch.float64) != values) & values.isfinite()
    beyond = inexact & (near.to(torch.float64).abs() > values.abs())
    bits = near.view(torch.int32) - beyond.to(torch.int32)
    return (bits | inexact.to(torch.int32)).view(torch.float32)


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

    Examples
    --------
    >>> import torch
    >>> from qformats.kernels.dense import cast
    >>> cast(torch.tensor([0.1]), "bf16")
    tensor([0.1001], dtype=torch.bfloat16)
    """
    import torch

    source = tensor.contiguous()
    if source.dtype == torch.float64 and dtype in ("f16", "bf16"):
        source = _to_odd(source)
    if source.device.type == "cpu" and dtype in _KERNEL and dtype_name(source.dtype) in _KERNEL:
        from qformats.kernels import cpu

        values = empty(source.shape, torch_dtype(dtype))
        count = cpu.cast(as_numpy(source), as_numpy(values))
    else:
        values = source.to(torch_dtype(dtype))
        count = int((~torch.isfinite(values)).sum())
    if count:
        require_finite(tensor)
        raise too_large(f"{count} of {tensor.numel()} values are too large for {dtype}", tensor)
    return values
