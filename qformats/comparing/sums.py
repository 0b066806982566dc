"""Sums over two tensors that every distance between them follows from, in one pass and in float64."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qformats.comparing.report import WeightError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Sums", "compare", "total"]


@dataclass(frozen=True)
class Sums:
    """Sums over pairs of weights, in squared weight units.

    Attributes
    ----------
    count : int
        Pairs.
    error, base, model, product : float
        Sums of ``(y - x)²``, ``x²``, ``y²`` and ``x y``, where `x` are the base's weights.
    max_error : float
        Largest ``|y - x|``, rounded to float32; weight units. NaN or infinite if a weight is.
    """

    count: int = 0
    error: float = 0.0
    base: float = 0.0
    model: float = 0.0
    product: float = 0.0
    max_error: float = 0.0

    def result(self) -> WeightError:
        """The distance that follows from these sums."""
        lengths = math.sqrt(self.base) * math.sqrt(self.model)
        # Equal vectors are parallel, zeros too; with one zero vector there is no angle.
        cosine = 1.0 if not self.error else self.product / lengths if lengths else 0.0
        return WeightError(
            count=self.count,
            max_error=self.max_error,
            rmse=math.sqrt(self.error / max(1, self.count)),
            base_rms=math.sqrt(self.base / max(1, self.count)),
            cosine=min(1.0, max(-1.0, cosine)),
        )


def total(parts: Iterable[Sums]) -> Sums:
    """Sums over the pairs of all parts, in their order."""
    found = Sums()
    for part in parts:
        found = Sums(
            found.count + part.count,
            found.error + part.error,
            found.base + part.base,
            found.model + part.model,
            found.product + part.product,
            max(found.max_error, part.max_error),
        )
    return found


def compare(base: Tensor, model: Tensor) -> Sums:
    """Sums over two tensors of one shape.

    Parameters
    ----------
    base, model : Tensor
        On the CPU, any float dtype; integers and float64 are read as float32. Not modified.
    """
    import numpy as np

    from qformats.kernels.cpu import for_reading

    first, second = for_reading(_floats(base)), for_reading(_floats(model))
    found = np.zeros(4)
    bits = _kernel()(first, second, found)
    largest = float(np.int32(bits).view(np.float32))
    error, squares, others, product = map(float, found)
    return Sums(first.size, error, squares, others, product, largest)


def _floats(values: Tensor) -> NDArray[Any]:
    """Flat array of one of the kernel's dtypes: float32, float16, or uint16 holding bf16 bits."""
    import torch

    from qformats.kernels.dense import as_numpy

    if values.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        values = values.to(torch.float32)
    return as_numpy(values.contiguous().reshape(-1))


@functools.cache
def _kernel() -> Callable[[NDArray[Any], NDArray[Any], NDArray[np.float64]], int]:
    """Kernel that fills in the four sums and gives the bits of the largest error."""
    import numpy as np

    from qformats.kernels.cpu import jit, widen

    # Sums may be taken in any order: that costs less than the last bits of float64 and makes them vectors.
    @jit(fastmath=frozenset({"reassoc", "nsz"}))
    def sums(base: Any, model: Any, out: Any) -> Any:
        error = squares = others = product = 0.0
        # Magnitudes of floats are ordered as their bits are, NaN last: a maximum of integers also tells what is not
        # finite.
        largest = np.int32(0)
        for i in range(base.size):
            x = np.float64(widen(base[i]))
            y = np.float64(widen(model[i]))
            change = y - x
            error += change * change
            squares += x * x
            others += y * y
            product += x * y
            magnitude = np.float32(change).view(np.int32) & np.int32(0x7FFFFFFF)
            largest = max(largest, magnitude)
        out[0], out[1], out[2], out[3] = error, squares, others, product
        return largest

    return sums
