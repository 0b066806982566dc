"""The shared kernels as torch operators: gradients, ``torch.compile`` and CUDA graphs work with them.

``torch.ops.qformats.linear``, ``.dequantize`` and ``.embedding`` take the tensors of a :class:`DeviceWeight` one by
one and its form as a list of integers; the functions here take the weight itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from qformats.errors import ConfigError, ShapeError
from qformats.kernels import reference
from qformats.kernels.dispatch import uses_triton
from qformats.kernels.form import DeviceForm, DeviceWeight

__all__ = ["dequantize", "embedding", "linear"]

# torch publishes its methods without types.
_library: Any = cast(Any, torch.library.Library)("qformats", "DEF")
_WEIGHT = (
    "Tensor[] planes, Tensor scale, Tensor? shift, Tensor? table, Tensor? order, "
    "Tensor? factor, Tensor? shift_factor, int[] form"
)
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def _flat(weight: DeviceWeight) -> tuple[Any, ...]:
    return list(weight.planes), *weight.beside.values(), list(weight.form)


def _weight(planes: Sequence[Tensor], *rest: Any) -> DeviceWeight:
    *beside, form = rest
    return DeviceWeight._make((tuple(planes), *beside, DeviceForm(*form)))


def _dequantized(weight: DeviceWeight, dtype: torch.dtype) -> Tensor:
    """Device order of columns."""
    if uses_triton(weight.scale):
        from qformats.kernels import launch

        return launch.dequantize(weight, dtype)
    return reference.dequantize(weight, dtype)


def _sorted_back(values: Tensor, order: Tensor | None) -> Tensor:
    """Columns in canonical order, from device order."""
    if order is None:
        return values
    back = torch.empty_like(order, dtype=torch.int64)
    back[order.long()] = torch.arange(len(order), device=order.device)
    return values.index_select(-1, back)


_library.define(f"linear(Tensor x, Tensor? bias, {_WEIGHT}) -> Tensor")
_library.define(f"dequantize({_WEIGHT}, ScalarType dtype) -> Tensor")
_library.define(f"embedding(Tensor ids, {_WEIGHT}, ScalarType dtype) -> Tensor")


def _linear(x: Tensor, bias: Tensor | None, *parts: Any) -> Tensor:
    weight = _weight(*parts)
    rows = x.reshape(-1, x.shape[-1])
    if weight.order is not None:
        rows = rows.index_select(1, weight.order)
    if uses_triton(x):
        from qformats.kernels import launch
        from qformats.kernels.tiles import fused_rows

        if 0 < len(rows) <= fused_rows(weight.form):
            out = launch.linear(rows, weight, bias)
        else:
            # The tensor cores alone are faster for many rows than together with a decode.
            out = torch.nn.functional.linear(rows, launch.dequantize(weight, x.dtype), bias)
    else:
        out = reference.linear(rows, weight)
        out = out if bias is None else out + bias
    return out.reshape(*x.shape[:-1], weight.form.rows)


def _linear_shape(x: Tensor, bias: Tensor | None, *parts: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], parts[-1][0]))


def _dequantize(*arguments: Any) -> Tensor:
    *parts, dtype = arguments
    weight = _weight(*parts)
    return _sorted_back(_dequantized(weight, dtype), weight.order)


def _dequantize_shape(*arguments: Any) -> Tensor:
    scale, form, dtype = arguments[1], arguments[-2], arguments[-1]
    return torch.empty((form[0], form[1]), dtype=dtype, device=scale.device)


def _embedding(ids: Tensor, *arguments: Any) -> Tensor:
    *parts, dtype = arguments
    weight = _weight(*parts)
    # A few rows of a large table: gathered while packed, then decoded.
    values = reference.embedding(ids.reshape(-1), weight, dtype)
    return _sorted_back(values, weight.order).reshape(*ids.shape, weight.form.columns)


def _embedding_shape(ids: Tensor, *arguments: Any) -> Tensor:
    form, dtype = arguments[-2], arguments[-1]
    return torch.empty((*ids.shape, form[1]), dtype=dtype, device=ids.device)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    # The weight is kept packed; x is not kept at all.
    _, _, planes, *others, form = inputs
    ctx.save_for_backward(*planes, *others)
    ctx.form, ctx.planes = form, len(planes)


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    of_x = of_bias = None
    if ctx.needs_input_grad[0]:
        # Unpacked once: a checkpointed layer gives its tensors a single time.
        saved = ctx.saved_tensors
        planes, others = saved[: ctx.planes], saved[ctx.planes :]
        of_x = grad @ torch.ops.qformats.dequantize(list(planes), *others, ctx.form, grad.dtype)
    if ctx.needs_input_grad[1]:
        of_bias = grad.reshape(-1, grad.shape[-1]).sum(0)
    return of_x, of_bias, [None] * ctx.planes, *[None] * (len(ctx.needs_input_grad) - 3)


for _name, _function, _shape in (
    ("linear", _linear, _linear_shape),
    ("dequantize", _dequantize, _dequantize_shape),
    ("embedding", _embedding, _embedding_shape),
):
    _library.impl(_name, _function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"qformats::{_name}", _shape, lib=_library)
torch.library.register_autograd("qformats::linear", _linear_backward, setup_context=_remember, lib=_library)


def _check(dtype: torch.dtype) -> None:
    if dtype not in _DTYPES:
        raise ConfigError("dtype", str(dtype), "float16, bfloat16 or float32")


def linear(x: Tensor, weight: DeviceWeight, bias: Tensor | None = None) -> Tensor:
    """``x @ W.T + bias``.

    Parameters
    ----------
    x : Tensor
        float16, bfloat16 or float32, ``(..., K)``; its gradient is ``grad @ W``, with W decoded again.
    weight : DeviceWeight
        ``(N, K)``, on the device of `x`; it has no gradient.
    bias : Tensor, optional
        ``(N,)``.

    Returns
    -------
    Tensor
        ``(..., N)``, dtype of `x`; sums in float32.

    Raises
    ------
    ShapeError
        If `x` and the weight differ in columns.
    ConfigError
        If the dtype of `x` is a different one.
    """
    _check(x.dtype)
    if x.shape[-1] != weight.form.columns:
        raise ShapeError("x", tuple(x.shape), f"{weight.form.columns} columns, as in the weight")
    result: Tensor = torch.ops.qformats.linear(x, bias, *_flat(weight))
    return result


def dequantize(weight: DeviceWeight, dtype: torch.dtype = torch.float32) -> Tensor:
    """Value of every element, computed in float32 and rounded once to `dtype`.

    Returns
    -------
    Tensor
        float16, bfloat16 or float32, ``(N, K)``.

    Raises
    ------
    ConfigError
        If `dtype` is a different one.
    """
    _check(dtype)
    result: Tensor = torch.ops.qformats.dequantize(*_flat(weight), dtype)
    return result


def embedding(ids: Tensor, weight: DeviceWeight, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows of the weight, decoded as :func:`dequantize` does.

    Parameters
    ----------
    ids : Tensor
        Integers, any shape, below N.
    weight : DeviceWeight
        ``(N, K)``.
    dtype : torch.dtype
        float16, bfloat16 or float32.

    Returns
    -------
    Tensor
        The shape of `ids`, and K.

    Raises
    ------
    ConfigError
        If `dtype` is a different one.
    """
    _check(dtype)
    result: Tensor = torch.ops.qformats.embedding(ids, *_flat(weight), dtype)
    return result
