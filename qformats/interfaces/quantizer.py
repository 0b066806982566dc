"""Quantizers: which grid point each weight gets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from qformats.errors import ConfigError, Described, ShapeError
from qformats.interfaces.checkpoint import Checkpoint
from qformats.interfaces.option import Option
from qformats.interfaces.packer import PackedTensor, Packer
from qformats.numbers.quantized import QuantizedTensor
from qformats.work.guard import Guarded
from qformats.work.progress import Progress
from qformats.work.shown import Shown

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Quantizer"]


class Quantizer(Shown, Guarded, ABC):
    """Chooses the grid point of each weight; works with any grid.

    Subclasses set :attr:`name` and implement :meth:`quantize`.

    Examples
    --------
    A quantizer that shrinks the range of every block by a share that users may set:

    >>> from qformats import Quantizer
    >>> from qformats.interfaces import Option, number
    >>> class Shrink(Quantizer):
    ...     name = "shrink"
    ...     options = (Option("share", "how much of the range is cut off (0.1)"),)
    ...
    ...     def quantize(self, weight, packer, importance=None):
    ...         share = number(self.given, "share", 0.1, 0.0, 0.9, whole=False)
    ...         params = packer.grid.fit(weight.float() * (1 - share))
    ...         return packer.grid.quantized(packer.grid.encode(weight.float(), params), params)
    """

    guarded = ("review", "prepare", "quantize", "quantize_checked", "encode")
    role = "quantizer"

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    options: ClassVar[tuple[Option, ...]] = ()
    """What users may set; what they did set is in :attr:`given`."""
    prepares: ClassVar[bool] = False
    """Whether it works on whole models before single tensors are written; it then needs one."""
    given: Mapping[str, str] = MappingProxyType({})
    """Those of :attr:`options` that the user set; the registry fills it in."""

    def _shown_facts(self) -> dict[str, str]:
        return {"name": getattr(self, "name", ""), "summary": self.summary}

    def review(self, packer: Packer, *, weighed: bool) -> str:
        """What users should know before a model is rounded to a format, as a sentence without the full stop.

        Parameters
        ----------
        packer : Packer
            Format of most tensors.
        weighed : bool
            Whether an importance matrix is given.

        Raises
        ------
        ConfigError
            If the options that are set make no sense for this format.
        """
        return ""

    def prepare(
        self,
        source: Checkpoint,
        formats: Mapping[str, Packer],
        work: Path,
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
            Folder for finished work. A killed run finds it again if nothing that affects the result has changed;
            after an export it is removed.
        progress : Progress
            Receives progress reports.

        Returns
        -------
        Checkpoint
            `source` with these tensors packed: their `packer` is the requested one, their `origin` the previous one.
            What is not packed goes through :meth:`quantize`. :class:`~qformats.interfaces.ReplacedTensors` is one.
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

    def quantize_checked(
        self, dense: Tensor, packer: Packer, importance: Tensor | None = None
    ) -> QuantizedTensor:
        """Refuse what is not finite, and quantize the rest; a quantizer overrides it only to be faster.

        Parameters
        ----------
        dense, packer, importance
            As for :meth:`quantize`.

        Raises
        ------
        NonFiniteError
            If a weight is NaN or infinite.
        ShapeError, ConfigError
            If `importance` does not have one number, finite and not negative, for each column.
        """
        from qformats.kernels.dense import require_finite

        require_finite(dense)
        if importance is not None:
            _require_importance(importance, int(dense.shape[1]))
        return self.quantize(dense, packer, importance)

    def encode(self, dense: Tensor, packer: Packer, importance: Tensor | None = None) -> PackedTensor:
        """Quantize and pack; a quantizer overrides it only to be faster. Matrices of a stack are rows of one."""
        if dense.ndim > 2:
            shape = tuple(dense.shape)
            packed = self.encode(dense.reshape(-1, shape[-1]), packer, importance)
            stored = packer.stored(shape)
            fields = {key: value.reshape(stored[key][0]) for key, value in packed.fields.items()}
            return PackedTensor(packer, shape, fields)
        quantized = self.quantize_checked(dense, packer, importance)
        if packer.grid is not None:
            packer.grid.validate(quantized)
        return packer.pack(quantized)


def _require_importance(importance: Tensor, columns: int) -> None:
    if tuple(importance.shape) != (columns,):
        raise ShapeError("importance", tuple(importance.shape), f"({columns},), one number per column")
    if not importance.is_floating_point():
        raise ConfigError("dtype of importance", str(importance.dtype), "a floating-point tensor")
    bad = int((~importance.isfinite() | (importance < 0)).sum())
    if bad:
        found = Described(f"{bad} values that are negative, infinite or NaN")
        raise ConfigError("importance", found, "weights of squared errors, 0 or more")
