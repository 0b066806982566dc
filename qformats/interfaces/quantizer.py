"""Quantizers: which grid point each weight gets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from qformats.checkpoint import Checkpoint
from qformats.interfaces.option import Option
from qformats.interfaces.packer import Packer
from qformats.tensors import PackedTensor, QuantizedTensor

if TYPE_CHECKING:
    from torch import Tensor

    from qformats.exporting.progress import Progress

__all__ = ["Quantizer"]


class Quantizer(ABC):
    """Chooses the grid point of each weight; works with any grid.

    Subclasses set :attr:`name` and implement :meth:`quantize`.
    """

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    options: ClassVar[tuple[Option, ...]] = ()
    """What users may set for :meth:`prepare`."""
    prepares: ClassVar[bool] = False
    """Whether it works on whole models before single tensors are written."""

    def prepare(
        self,
        source: Checkpoint,
        formats: Mapping[str, Packer],
        work: Path,
        options: Mapping[str, str],
        progress: Progress,
    ) -> Checkpoint:
        """Quantize weights with the whole model at hand, as calibration does.

        Parameters
        ----------
        source : Checkpoint
            The model.
        formats : mapping of str to Packer
            Format of each tensor that is to be quantized, by canonical name.
        work : Path
            Folder for what is finished. A killed run finds it again, if nothing that decides the result has changed;
            after an export it is removed.
        options : mapping of str to str
            Of :attr:`options`, those that were given.
        progress : Progress
            Is told how far the work is.

        Returns
        -------
        Checkpoint
            `source` with these tensors packed: their `format` is the one asked for, their `origin` what they were. What
            is not packed goes through :meth:`quantize`.
        """
        return source

    @abstractmethod
    def quantize(self, weight: Tensor, packer: Packer, importance: Tensor | None = None) -> QuantizedTensor:
        """Codes and parameters for one weight.

        Parameters
        ----------
        weight : Tensor
            float32, float16 or bfloat16, ``(N, K)``: some formats round in the dtype of the source. Not modified.
        packer : Packer
            Format whose grid the result must lie on.
        importance : Tensor, optional
            float32, ``(K,)``: weight of each column's squared error.
        """

    def encode(self, dense: Tensor, packer: Packer) -> PackedTensor:
        """Quantize and pack; a quantizer overrides it only to be faster."""
        from qformats.kernels.dense import require_finite

        require_finite(dense)
        quantized = self.quantize(dense, packer)
        if packer.grid is not None:
            packer.grid.validate(quantized)
        return packer.pack(quantized)
