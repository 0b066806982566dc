"""The value of a canonical tensor, in NumPy: what every decoder must give, bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from qformats.numbers import QuantizedTensor

__all__ = ["canonical_values"]


def canonical_values(quantized: QuantizedTensor) -> Tensor:
    """Give ``fl(fl(scale * level) + minimum)`` with two roundings to float32 and nothing fused.

    Parameters
    ----------
    quantized : QuantizedTensor
        Any canonical tensor, on a CPU.

    Returns
    -------
    Tensor
        float32, ``(N, K)``.

    Examples
    --------
    >>> import qformats, torch
    >>> from qformats.testing.canonical import canonical_values
    >>> quantized = qformats.quantize(torch.eye(32), "gguf:q4_0")
    >>> bool((canonical_values(quantized) == quantized.dequantize()).all())
    True
    """
    import numpy as np
    import torch

    codes = quantized.codes.numpy()
    if quantized.codebook is not None:
        level = quantized.codebook.numpy().astype(np.float32)[codes]
    else:
        zero = quantized.zero_point
        offset: Any = zero
        if isinstance(zero, torch.Tensor):
            offset = _spread(zero.numpy().astype(np.float64), quantized)
        level = (codes.astype(np.float64) - offset).astype(np.float32)
    with np.errstate(all="ignore"):
        # Each operation of NumPy is rounded by itself.
        value = np.multiply(_spread(quantized.scale.numpy().astype(np.float32), quantized), level)
        if quantized.minimum is not None:
            minimum = quantized.minimum.numpy().astype(np.float32)
            value = np.add(value, _spread(minimum, quantized))
    return torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32))


def _spread(values: np.ndarray[Any, Any], quantized: QuantizedTensor) -> np.ndarray[Any, Any]:
    """One value per block, repeated over its elements."""
    import numpy as np

    rows, columns = quantized.shape
    block_rows, block_columns = quantized.block_size
    if block_rows == 0:
        return np.repeat(values, block_columns)[: rows * columns].reshape(rows, columns)
    down = np.repeat(values, block_rows, 0)[:rows]
    if quantized.g_idx is not None:
        return np.take(down, quantized.g_idx.numpy(), 1)
    return np.repeat(down, block_columns, 1)[:, :columns]
