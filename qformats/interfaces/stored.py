"""One tensor of a checkpoint, read when asked for; its rows in another order, cut, and joined with others'."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qformats.errors import PluginError, ShapeError
from qformats.interfaces.dense import dense
from qformats.interfaces.packer import PackedTensor, Packer
from qformats.interfaces.rows import join, pick, refit
from qformats.work.guard import blamed
from qformats.work.shown import Shown, bits, dims, nbytes

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

__all__ = ["StoredTensor", "concat_rows", "same_values"]


@dataclass(frozen=True, eq=False, repr=False)
class StoredTensor(Shown):
    """One tensor of a checkpoint, readable by rows.

    Attributes
    ----------
    name : str
        Canonical name.
    shape : tuple of int
        ``(N, K)`` for weights, ``(N,)`` for vectors.
    packer : Packer
        Format of what is read.
    nbytes : int
        Stored bytes.
    file : Path
        File that holds it, for messages and for reading in file order.
    offset : int
        Position in the file, if known; used only as an order.
    load : callable
        ``load(start, stop)`` gives rows ``[start, stop)`` as a PackedTensor; without copying where possible.
    step : int
        Ranges of rows whose ends are multiples of it can be read by themselves; 0 if only the whole tensor can. See
        :meth:`qformats.Packer.row_step`.
    origin : Packer or None
        Format on disk, if `load` had to decode or convert it to that of `packer`.
    names : frozenset of str
        Every name that it, or a tensor that it was made from, has had: here, in its file, and of the fields that store
        it there. So a plan can tell which tensors of a file are in its output.
    matrices : tuple of str
        Where a loader has stacked several tensors into this one: their canonical names, in order.
    separate : bool
        Whether these cannot be stacked as they are stored: then ``load(i, i + 1)`` gives matrix `i`, of two dimensions,
        in the format of `packer`, and a range of several is decoded.

    Examples
    --------
    >>> import qformats
    >>> tensor = qformats.open("demo").tensors["model.layers.0.mlp.up_proj.weight"]
    >>> tensor.shape, tensor.format, tensor.nbytes
    ((1024, 256), 'dense:bf16', 524288)
    >>> tensor.read(0, 3).shape
    (3, 256)
    >>> tensor.slice_rows(8, 16).shape
    (8, 256)
    """

    name: str
    shape: tuple[int, ...]
    packer: Packer
    nbytes: int
    file: Path
    load: Callable[[int, int], PackedTensor]
    offset: int = 0
    step: int = 1
    origin: Packer | None = None
    names: frozenset[str] = frozenset()
    matrices: tuple[str, ...] = ()
    separate: bool = False

    def __post_init__(self) -> None:
        """Add the present name to all names."""
        if self.name not in self.names:
            object.__setattr__(self, "names", self.names | {self.name})

    @property
    def format(self) -> str:
        """Name of the format of what is read, ``family:variant``."""
        return self.packer.name

    @property
    def stored_packer(self) -> Packer:
        """Format on disk."""
        return self.origin or self.packer

    @property
    def stored_format(self) -> str:
        """Name of the format on disk."""
        return self.stored_packer.name

    @property
    def numel(self) -> int:
        """Number of weights."""
        count = 1
        for dim in self.shape:
            count *= dim
        return count

    @property
    def rows(self) -> int:
        """Size of the first dimension; 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    def _shown_facts(self) -> dict[str, str]:
        read = self.stored_format != self.format
        return {
            "name": self.name,
            "shape": dims(self.shape),
            "format": f"{self.stored_format} read as {self.format}" if read else self.format,
            "bytes": nbytes(self.nbytes),
            "bits": bits(self.nbytes, self.numel),
            "file": self.file.name,
        }

    def read(self, start: int = 0, stop: int | None = None) -> PackedTensor:
        """Rows ``[start, stop)``, all of them by default.

        Raises
        ------
        PluginError
            If the loader's code fails, naming the tensor and its file.
        """
        try:
            return self.load(start, self.rows if stop is None else stop)
        except PluginError as error:
            error.about(subject=f"format {self.format}", tensor=self.name, file=self.file)
            raise
        except Exception as error:
            instead = blamed(error, getattr(self.load, "__module__", ""), f"reading {self.file.name}")
            if instead is None:
                raise
            instead.about(subject=f"format {self.format}", tensor=self.name, file=self.file)
            raise instead from error

    def renamed(self, name: str) -> StoredTensor:
        """The same tensor under another name."""
        return replace(self, name=name)

    def dequantize(self) -> Tensor:
        """Value of every element: float32, the tensor's shape."""
        return self.read().dequantize()

    def take_rows(self, order: np.ndarray[Any, np.dtype[np.intp]]) -> StoredTensor:
        """The same tensor with its rows in another order, on the stored bytes if they are stored by rows.

        Otherwise it is unpacked and packed again without rounding; it is decoded only if blocks straddle rows.

        Parameters
        ----------
        order : numpy.ndarray
            Integers, ``(M,)``: new row ``i`` is old row ``order[i]``.
        """
        own = self.packer
        if own.row_step(self.shape) != 1:
            return self._repacked(order)
        shape = (len(order), *self.shape[1:])

        def load(start: int, stop: int) -> PackedTensor:
            import torch

            chosen = torch.from_numpy(order[start:stop])
            low, high = int(chosen.min()), int(chosen.max()) + 1
            return refit(pick(self.load(low, high), chosen - low), shape)

        nbytes = self.nbytes // max(1, self.rows) * len(order)
        return replace(self, shape=shape, nbytes=nbytes, load=load)

    def _repacked(self, order: np.ndarray[Any, np.dtype[np.intp]]) -> StoredTensor:
        own = self.packer
        shape = (len(order), *self.shape[1:])
        if not own.readable:
            # Whoever reads it is told why it cannot be; it must not pass for plain numbers until then.
            return replace(self, shape=shape)
        other = own.row_packer(self.shape)
        if other is None:
            return self._decoded().take_rows(order)

        def load(start: int, stop: int) -> PackedTensor:
            import torch

            whole = self.read()
            packed = other.pack(own.unpack(whole).take_rows(torch.from_numpy(order[start:stop])))
            return replace(packed, fields={**packed.fields, **other.fixed(shape, own.made_from(whole))})

        nbytes = self.nbytes * len(order) // max(1, self.rows)
        return replace(
            self,
            shape=shape,
            packer=other,
            nbytes=nbytes,
            load=load,
            step=0,
            origin=self.stored_packer if other.name != self.stored_format else None,
        )

    def slice_rows(self, start: int, stop: int) -> StoredTensor:
        """Rows ``[start, stop)`` as a tensor of their own, see :meth:`take_rows`."""
        own = self.packer
        step = own.row_step(self.shape)
        if step == 0 or start % step or (stop % step and stop != self.rows):
            import numpy as np

            return self._repacked(np.arange(start, stop))

        shape = (stop - start, *self.shape[1:])

        def load(first: int, last: int) -> PackedTensor:
            return refit(self.load(start + first, start + last), shape)

        nbytes = self.nbytes * (stop - start) // max(1, self.rows)
        return replace(self, shape=shape, nbytes=nbytes, load=load)

    def transposed(self) -> StoredTensor:
        """The same matrix with its dimensions exchanged.

        A quantized one is decoded, since its blocks lie along rows.
        """
        if not self.packer.readable:
            return replace(self, shape=(self.shape[1], self.shape[0]))
        if self.packer.quantizes:
            return self._decoded().transposed()

        def load(start: int, stop: int) -> PackedTensor:
            whole = self.read()
            ((field, values),) = whole.fields.items()
            part = values.t()[start:stop]
            return PackedTensor(whole.packer, tuple(part.shape), {field: part})

        return replace(self, shape=(self.shape[1], self.shape[0]), load=load)

    def _decoded(self) -> StoredTensor:
        """The same tensor as plain float32, decoded whole whenever a part of it is read."""
        plain = dense("f32")

        def load(start: int, stop: int) -> PackedTensor:
            part = self.read().dequantize()[start:stop]
            return PackedTensor(plain, tuple(part.shape), {"weight": part})

        return replace(self, packer=plain, load=load, step=0, origin=self.stored_packer)


def concat_rows(name: str, parts: Sequence[StoredTensor]) -> StoredTensor:
    """Several tensors stacked into one.

    Parameters
    ----------
    name : str
        Name of the result.
    parts : sequence of StoredTensor
        The same number of columns each. If their formats differ, or are not stored by rows, all are decoded.

    Raises
    ------
    ShapeError
        If their rows differ in width.

    Examples
    --------
    >>> import qformats
    >>> from qformats.interfaces import concat_rows
    >>> tensors = qformats.open("demo").tensors
    >>> parts = [tensors[f"model.layers.0.self_attn.{name}_proj.weight"] for name in "qkv"]
    >>> concat_rows("qkv", parts).shape
    (512, 256)
    """
    first = parts[0]
    for part in parts:
        if part.shape[1:] != first.shape[1:]:
            raise ShapeError(part.name, part.shape, f"rows like those of {first.name}, {first.shape}")
    unreadable = next((part for part in parts if not part.packer.readable), None)
    if unreadable is not None:
        return replace(unreadable, name=name, shape=(sum(part.rows for part in parts), *first.shape[1:]))
    if any(p.format != first.format or p.packer.row_step(p.shape) != 1 for p in parts):
        parts = [part._decoded() for part in parts]
    ends = list(itertools.accumulate(part.rows for part in parts))

    shape = (ends[-1], *first.shape[1:])

    def load(start: int, stop: int) -> PackedTensor:
        found = []
        for part, end in zip(parts, ends, strict=True):
            begin = end - part.rows
            low, high = max(start, begin), min(stop, end)
            if low < high:
                found.append(part.load(low - begin, high - begin))
        return refit(join(found), shape)

    step = min(part.step for part in parts)
    nbytes = sum(part.nbytes for part in parts)
    names = frozenset[str]().union(*(part.names for part in parts))
    return replace(parts[0], name=name, shape=shape, nbytes=nbytes, load=load, step=step, names=names)


_FIRST_LOOK = 1 << 12
"""Weights that :func:`same_values` compares first: tensors that differ nearly always do so at once."""
_LOOK = 1 << 22
"""Weights that it compares at most at a time."""


def same_values(first: StoredTensor, second: StoredTensor) -> bool:
    """Whether two tensors hold the same numbers, read in slices of rows and only until they differ.

    Plain numbers are compared by value, whatever their dtypes; quantized ones by their stored fields, so that two
    formats are never the same.

    Examples
    --------
    >>> import qformats
    >>> from qformats.interfaces import same_values
    >>> tensors = qformats.open("demo").tensors
    >>> same_values(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    False
    """
    if first.shape != second.shape:
        return False
    quantized = first.packer.quantizes or second.packer.quantizes
    if quantized and first.format != second.format:
        return False
    together = math.lcm(first.step, second.step)
    width = max(1, first.numel // max(1, first.rows))
    start, weights = 0, _FIRST_LOOK
    while start < first.rows:
        rows = max(1, weights // width // together) * together if together else first.rows
        stop = min(first.rows, start + rows)
        if not _same(first.read(start, stop), second.read(start, stop)):
            return False
        start, weights = stop, _LOOK
    return True


def _same(first: PackedTensor, second: PackedTensor) -> bool:
    import torch

    if first.fields.keys() != second.fields.keys():
        return False
    for name, values in first.fields.items():
        other = second.fields[name]
        if values.dtype != other.dtype:
            values, other = values.double(), other.double()
        if not torch.equal(values, other):
            return False
    return True
