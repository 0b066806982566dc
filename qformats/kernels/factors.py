"""Scales that stay two numbers on the device: an outer one, and a byte for each group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qformats.kernels.form import EXPONENT, FLOAT8, FLOAT8_UNIT, LIFTED, QUAD, QUOTIENT, WHOLE, DeviceForm

if TYPE_CHECKING:
    from torch import Tensor

    from qformats.numbers.nested import NestedScales
    from qformats.numbers.quantized import QuantizedTensor

__all__ = ["FACTORED", "factor_words", "multiplied", "small_floats", "stay_apart"]

FACTORED = (16, 32)
"""Groups for which scales stay in two levels: a strip has one or two. Others are multiplied out."""
_OUTER_RANGE = (2.0**-100, 2.0**100)
"""Outer scales that are normal numbers, also as a product with the smallest inner one."""


def stay_apart(nested: Sequence[NestedScales], quantized: QuantizedTensor) -> bool:
    """Whether the kernels read nested scales as they are, and these are the tensor's scales."""
    import torch

    own = [quantized.scale] + ([] if quantized.minimum is None else [quantized.minimum])
    height, group = quantized.block_size
    if height != 1 or len(nested) != len(own):
        return False
    for each, scale in zip(nested, own, strict=True):
        if each.divides:
            return False
        whole = each.inner.to(torch.int8)
        fits = (
            each.dtype in ("f16", "f32") and not each.group * group % QUAD and each.group == nested[0].group
        )
        if not fits or not torch.equal(whole.float(), each.inner) or not torch.equal(each.values(), scale):
            return False
    return True


def small_floats(quantized: QuantizedTensor) -> tuple[int, Tensor, Tensor] | None:
    """Kind of the scales' inner numbers, outer ones float32 ``(N, 1)``, and inner ones as bytes uint8 ``(N, groups)``.

    None where scales are neither powers of two nor numbers of E4M3 with one number for each row.
    """
    import torch

    scale = quantized.scale
    if scale.dtype != torch.float32 or quantized.block_size[0] != 1 or not scale.numel():
        return None
    # Of powers of two only the exponent is not 0. Formats with a byte for it have some too small for a normal number.
    for outer in (1.0, 0.25):
        bits = (scale / outer).view(torch.int32)
        byte = bits >> 23
        if bool(((bits & 0x7FFFFF == 0) & (byte > 0) & (byte < 255)).all()):
            return EXPONENT, torch.full_like(scale[:, :1], outer), byte.to(torch.uint8)
    nested = quantized.nested_scales
    if len(nested) != 1 or nested[0].outer.shape[1] != 1 or nested[0].dtype != "f32":
        return None
    each = nested[0]
    least, most = _OUTER_RANGE
    size = 1 / each.outer if each.divides else each.outer
    stored = each.inner.to(torch.float8_e4m3fn)
    fits = bool(((size >= least) & (size <= most)).all()) and bool((each.inner >= 0).all())
    if not fits or not torch.equal(stored.float(), each.inner) or not torch.equal(each.values(), scale):
        return None
    stretched = each.outer / FLOAT8_UNIT if each.divides else each.outer * FLOAT8_UNIT
    return QUOTIENT if each.divides else FLOAT8, stretched, stored.view(torch.uint8) & 127


def factor_words(factor: Tensor, count: int) -> Tensor:
    """Numbers from 0 to 255, ``(N, groups)``, as bytes of int32 ``(count / 4, N)``; zeros behind them."""
    import torch

    padded = torch.nn.functional.pad(factor.to(torch.uint8), (0, count - factor.shape[1]))
    return padded.contiguous().view(torch.int32).t().contiguous()


def multiplied(outer: Tensor, words: Tensor, form: DeviceForm) -> Tensor:
    """Scales or minima ``(N, groups)`` of the two numbers that :func:`arrange` kept apart."""
    import torch

    groups = -(-form.columns // form.group)
    byte = words.t().contiguous().view(torch.uint8)[:, :groups]
    if form.inner == EXPONENT:
        return (byte.to(torch.int32) << 23).view(torch.float32) * outer.t()
    if form.inner != WHOLE:
        value = byte.view(torch.float8_e4m3fn).float() / FLOAT8_UNIT
        return value / outer.t() if form.inner == QUOTIENT else value * outer.t()
    factor = byte.float() - LIFTED
    return factor * outer.float().t().repeat_interleave(form.outer // form.group, 1)[:, :groups]
