"""Quantizing with an importance of each column."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qformats.interfaces.packer import PackedTensor, Packer
from qformats.interfaces.quantizer import Quantizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Weighed"]


class Weighed:
    """A quantizer that is told what errors in the columns of one matrix cost.

    Parameters
    ----------
    quantizer : Quantizer
        Chooses codes.
    importance : ndarray
        float32, ``(K,)``.
    """

    def __init__(self, quantizer: Quantizer, importance: NDArray[np.float32]) -> None:
        import torch

        self._quantizer = quantizer
        self._importance = torch.from_numpy(importance)

    def encode(self, dense: Tensor, packer: Packer) -> PackedTensor:
        """Quantize and pack rows of the matrix, also as a stack of one."""
        matrix = dense.reshape(-1, dense.shape[-1])
        packed = self._quantizer.encode(matrix, packer, self._importance)
        if dense.ndim == matrix.ndim:
            return packed
        shape = tuple(dense.shape)
        stored = packer.stored(shape)
        return PackedTensor(packer, shape, {k: v.reshape(stored[k][0]) for k, v in packed.fields.items()})
