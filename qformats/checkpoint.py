"""A model on disk: its configuration, its tokenizer, and tensors that are read when asked for."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qformats.errors import ShapeError
from qformats.tensors import PackedTensor

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

__all__ = ["Checkpoint", "Fingerprint", "StoredTensor", "concat_rows", "fingerprint", "map_file"]

Fingerprint = tuple[tuple[str, int, int, int, int, int], ...]
"""Path, device, inode, size, and times of change of content and of inode, in nanoseconds, of every file."""


def fingerprint(files: Sequence[Path]) -> Fingerprint:
    """What tells whether files are still the ones that were opened."""
    found = []
    for file in files:
        state = file.stat()
        times = (state.st_mtime_ns, state.st_ctime_ns)
        found.append((str(file.resolve()), state.st_dev, state.st_ino, state.st_size, *times))
    return tuple(found)


def map_file(path: Path) -> Tensor:
    """Memory-map a file read-only in effect: nothing is read until used, and nothing is ever written back.

    Returns
    -------
    Tensor
        uint8, ``(file size,)``; every view of it stays valid while the tensor lives.
    """
    import mmap

    import torch

    with path.open("rb") as file:
        # A private mapping, because torch warns about tensors over read-only memory; unreserved, because the
        # kernel refuses private mappings larger than the machine's memory otherwise.
        flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0x4000)
        mapped = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return torch.frombuffer(mapped, dtype=torch.uint8)


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """One tensor of a checkpoint, readable by rows.

    Attributes
    ----------
    name : str
        Canonical name.
    shape : tuple of int
        ``(N, K)`` for weights, ``(N,)`` for vectors.
    format : str
        ``family:variant`` of the stored bytes.
    nbytes : int
        Stored bytes.
    file : Path
        File that holds it, for messages and for reading in file order.
    offset : int
        Position in the file, where known; only an order.
    load : callable
        ``load(start, stop)`` gives rows ``[start, stop)`` as a PackedTensor; without copying where possible.
    step : int
        Ranges of rows whose ends are multiples of it can be read by themselves; 0 if only the whole tensor can. See
        :meth:`qformats.Packer.row_step`.
    origin : str
        Format on disk, where `load` had to decode it to give `format`; else empty.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    nbytes: int
    file: Path
    load: Callable[[int, int], PackedTensor]
    offset: int = 0
    step: int = 1
    origin: str = ""

    @property
    def stored_format(self) -> str:
        """Format on disk."""
        return self.origin or self.format

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

    def read(self, start: int = 0, stop: int | None = None) -> PackedTensor:
        """Rows ``[start, stop)``, all of them by default."""
        return self.load(start, self.rows if stop is None else stop)

    def renamed(self, name: str) -> StoredTensor:
        """The same tensor under another name."""
        return replace(self, name=name)

    def take_rows(self, order: np.ndarray[Any, np.dtype[np.intp]]) -> StoredTensor:
        """The same tensor with its rows in another order, on the bytes where they lie by rows.

        Elsewhere it is unpacked and packed again without rounding; only where blocks straddle rows is it decoded.

        Parameters
        ----------
        order : numpy.ndarray
            Integers, ``(M,)``: new row ``i`` is old row ``order[i]``.
        """
        from qformats.api import packer

        own = packer(self.format)
        if own.row_step(self.shape) != 1:
            return self._repacked(order)
        shape = (len(order), *self.shape[1:])

        def load(start: int, stop: int) -> PackedTensor:
            import torch

            chosen = torch.from_numpy(order[start:stop])
            low, high = int(chosen.min()), int(chosen.max()) + 1
            return own.refit(own.pick(self.load(low, high), chosen - low), shape)

        nbytes = self.nbytes // max(1, self.rows) * len(order)
        return replace(self, shape=shape, nbytes=nbytes, load=load)

    def _repacked(self, order: np.ndarray[Any, np.dtype[np.intp]]) -> StoredTensor:
        from qformats.api import packer

        own = packer(self.format)
        other = own.row_packer(self.shape)
        if other is None:
            return self._decoded().take_rows(order)
        shape = (len(order), *self.shape[1:])

        def load(start: int, stop: int) -> PackedTensor:
            import torch

            whole = self.read()
            packed = other.pack(own.unpack(whole).take_rows(torch.from_numpy(order[start:stop])))
            return replace(packed, fields={**packed.fields, **other.fixed(shape, own.made_from(whole))})

        nbytes = self.nbytes * len(order) // max(1, self.rows)
        return replace(
            self,
            shape=shape,
            format=other.name,
            nbytes=nbytes,
            load=load,
            step=0,
            origin=self.stored_format if other.name != self.stored_format else "",
        )

    def slice_rows(self, start: int, stop: int) -> StoredTensor:
        """Rows ``[start, stop)`` as a tensor of their own, see :meth:`take_rows`."""
        from qformats.api import packer

        own = packer(self.format)
        step = own.row_step(self.shape)
        if step == 0 or start % step or (stop % step and stop != self.rows):
            import numpy as np

            return self._repacked(np.arange(start, stop))

        shape = (stop - start, *self.shape[1:])

        def load(first: int, last: int) -> PackedTensor:
            return own.refit(self.load(start + first, start + last), shape)

        nbytes = self.nbytes * (stop - start) // max(1, self.rows)
        return replace(self, shape=shape, nbytes=nbytes, load=load)

    def transposed(self) -> StoredTensor:
        """The same matrix with its dimensions exchanged.

        A quantized one is decoded, since its blocks lie along rows.
        """
        from qformats.api import packer

        if packer(self.format).dense_dtype is None:
            return self._decoded().transposed()

        def load(start: int, stop: int) -> PackedTensor:
            whole = self.read()
            ((field, values),) = whole.fields.items()
            part = values.t()[start:stop]
            return PackedTensor(whole.format, tuple(part.shape), {field: part})

        return replace(self, shape=(self.shape[1], self.shape[0]), load=load)

    def _decoded(self) -> StoredTensor:
        """The same tensor as plain float32, decoded whole whenever a part of it is read."""
        from qformats.api import packer

        own = packer(self.format)

        def load(start: int, stop: int) -> PackedTensor:
            part = own.dequantize(self.read())[start:stop]
            return PackedTensor("dense:f32", tuple(part.shape), {"weight": part})

        return replace(self, format="dense:f32", load=load, step=0, origin=self.stored_format)


def concat_rows(name: str, parts: Sequence[StoredTensor]) -> StoredTensor:
    """Several tensors as one, below each other.

    Parameters
    ----------
    name : str
        Name of the result.
    parts : sequence of StoredTensor
        The same number of columns each. Where their formats differ, or do not lie by rows, all are decoded.

    Raises
    ------
    ShapeError
        If their rows differ in width.
    """
    from qformats.api import packer

    first = parts[0]
    for part in parts:
        if part.shape[1:] != first.shape[1:]:
            raise ShapeError(part.name, part.shape, f"rows as those of {first.name}, {first.shape}")
    if any(p.format != first.format or packer(p.format).row_step(p.shape) != 1 for p in parts):
        parts = [part._decoded() for part in parts]
    ends = list(itertools.accumulate(part.rows for part in parts))

    shape = (ends[-1], *first.shape[1:])
    own = packer(parts[0].format)

    def load(start: int, stop: int) -> PackedTensor:
        found = []
        for part, end in zip(parts, ends, strict=True):
            begin = end - part.rows
            low, high = max(start, begin), min(stop, end)
            if low < high:
                found.append(part.load(low - begin, high - begin))
        return own.refit(own.join(found), shape)

    step = min(part.step for part in parts)
    nbytes = sum(part.nbytes for part in parts)
    return replace(parts[0], name=name, shape=shape, nbytes=nbytes, load=load, step=step)


class Checkpoint(ABC):
    """A model on disk. Opened by a loader from headers alone; weights stay on disk until read.

    Attributes
    ----------
    path : Path
        What was opened.
    name : str
        What to call the model.
    container : str
        Name of the loader that opened it.
    fingerprint : Fingerprint or None
        Of `files` when it was opened by :func:`qformats.open`.
    tensors : mapping of str to StoredTensor
        By canonical name, in file order.
    """

    path: Path
    name: str = "model"
    container: str
    fingerprint: Fingerprint | None = None
    tensors: Mapping[str, StoredTensor]

    @property
    @abstractmethod
    def architecture(self) -> str:
        """Name of the architecture, as the container has it (``llama``)."""

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Configuration as Transformers' ``config.json`` has it."""

    @abstractmethod
    def tokenizer_files(self) -> dict[str, bytes]:
        """Tokenizer as the files of a Hugging Face folder, by file name; empty if there is none."""

    @property
    @abstractmethod
    def files(self) -> list[Path]:
        """Every file that the model was read from; their sizes and times identify the source of an export."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the container says about the model, for people to read."""
        return self.config

    @property
    def parameters(self) -> int:
        """Number of weights in all tensors."""
        return sum(tensor.numel for tensor in self.tensors.values())

    @property
    def nbytes(self) -> int:
        """Stored bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def bits_per_weight(self) -> float:
        """Mean stored bits a weight."""
        return self.nbytes * 8 / max(1, self.parameters)

    def read(self, name: str) -> Tensor:
        """Values of one tensor.

        Returns
        -------
        Tensor
            float32, the tensor's shape.
        """
        from qformats.api import dequantize

        return dequantize(self.tensors[name].read())
