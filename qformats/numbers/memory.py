"""Memory for large results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["empty"]

_HUGE = 1 << 21
"""Bytes of a huge page."""


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Memory for what a kernel writes, on the CPU and not initialised, in huge pages where the system has them.

    torch.empty takes pages of 4 KiB: to touch 64 MB for the first time took 26 ms, in huge pages 5 (x86-64 virtual
    machine, Linux 6.18), while a kernel decodes as much in 3.

    Examples
    --------
    >>> import torch
    >>> from qformats.numbers import empty
    >>> empty((2048, 1024), torch.float32).shape
    torch.Size([2048, 1024])
    """
    import numpy as np
    import torch

    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < 2 * _HUGE:
        return torch.empty(tuple(shape), dtype=dtype)
    # numpy asks for huge pages; whole ones begin at multiples of their size.
    memory = np.empty(nbytes + _HUGE, np.uint8)
    first = -memory.ctypes.data % _HUGE
    return torch.from_numpy(memory[first : first + nbytes]).view(dtype).view(tuple(shape))
