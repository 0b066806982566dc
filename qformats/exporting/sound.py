"""Values that an export must not pass on in silence: scales that are NaN or infinite, and rows that become zeros.

Both show in the stored scales, which are a fraction of the bytes. Only where they look wrong is anything decoded.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qformats.errors import NonFiniteError, spelled
from qformats.interfaces.packer import PackedTensor
from qformats.kernels.dense import require_finite

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["require_sound", "vanished", "warn_of_zeros"]

_LARGEST = 2.0**112
"""Scales up to this give finite float32 values whatever the code: no format has levels beyond 2**15."""
_NAMED = 3
"""Tensors that warnings name."""
_FEW = 16
"""Plain numbers of a row that are looked at first: if one of them is not zero, the row is not."""


def require_sound(packed: PackedTensor) -> None:
    """Refuse stored numbers that decode to NaN or infinity.

    Raises
    ------
    NonFiniteError
        Saying how many values there are and where the first one is.
    """
    import torch

    for scale in packed.packer.scales(packed):
        if not _ordinary(scale):
            if packed.packer.readable:
                require_finite(packed.dequantize())
                continue
            bad = int((~torch.isfinite(scale)).sum())
            if bad:
                hint = "repair the model: no format can hold such weights meaningfully"
                raise NonFiniteError(f"{bad} of {scale.numel()} scales are NaN or infinite", hint)


def _ordinary(scale: Tensor) -> bool:
    """Whether scales are finite, and small enough for any code."""
    import torch

    if not scale.numel():
        return True
    if scale.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        # NaN compares as false.
        return bool(scale.abs().amax() <= _LARGEST)
    # Bits without the sign are ordered as magnitudes are, NaN last; they take half as long to compare as floats.
    word = torch.int32 if scale.dtype == torch.float32 else torch.int16
    most = torch.tensor(min(_LARGEST, torch.finfo(scale.dtype).max), dtype=scale.dtype).view(word)
    return bool((scale.view(word) & torch.iinfo(word).max).amax() <= most)


def vanished(before: PackedTensor, after: PackedTensor) -> int:
    """Count rows of which every value is zero now although not all were: they were too small for the format.

    Parameters
    ----------
    before, after : PackedTensor
        The same rows in two formats. A vector counts as one row.
    """
    if not after.fields or not _suspicious(after):
        return 0
    found, given = (_rows(each.dequantize()) for each in (after, before))
    return int(((found == 0).all(1) & (given != 0).any(1)).sum())


def warn_of_zeros(lost: Sequence[tuple[str, int, int, str]]) -> None:
    """Warn of rows that became zeros.

    Parameters
    ----------
    lost : sequence of (str, int, int, str)
        Tensor, rows that became zeros, rows in all, and the format.
    """
    keeps = spelled("--tensor-type 'NAME=f32'", "tensor_types={'NAME': 'f32'}")
    for name, rows, total, format in lost[:_NAMED]:
        told = (
            f"{name}: {rows:,} of {total:,} rows became zeros: their weights are too small for {format} "
            f"({keeps} keeps them)"
        )
        warnings.warn(told, UserWarning, stacklevel=3)
    if len(lost) > _NAMED:
        told = f"rows of {len(lost) - _NAMED} other tensors became zeros too; the report has them all"
        warnings.warn(told, UserWarning, stacklevel=3)


def _suspicious(packed: PackedTensor) -> bool:
    """Whether a row may be all zeros."""
    if packed.packer.quantizes:
        zero = None
        for scale in packed.packer.scales(packed):
            zero = scale == 0 if zero is None else zero & (scale == 0)
        return zero is not None and bool(zero.any())
    values = _rows(next(iter(packed.fields.values())))
    return bool((values[:, :_FEW] == 0).all(1).any())


def _rows(values: Tensor) -> Tensor:
    return values.reshape(values.shape[0], -1) if values.ndim > 1 else values.reshape(1, -1)
