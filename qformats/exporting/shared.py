"""Reading a model once for several outputs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from qformats.exporting.fill import SLICE_WEIGHTS
from qformats.interfaces.checkpoint import Checkpoint
from qformats.interfaces.packer import PackedTensor
from qformats.interfaces.rows import cut, stack
from qformats.interfaces.stored import StoredTensor

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SharedReads"]

_KEPT = 16 * SLICE_WEIGHTS
"""Weights that are kept: 128 MB of a 16-bit model that has to be decoded to be read, next to nothing of one whose files
are mapped. Outputs that join tensors (queries, keys and values) are as far ahead of the others."""

Key = tuple[int, int, int]
"""Which tensor, first and last row (exclusive)."""


class SharedReads:
    """Reads of a model that several outputs share: what one has read lately, the others get.

    Tensors are read in pieces as large as the slices of an export, and whole where an output needs them whole.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, Future[PackedTensor]] = OrderedDict()
        self._weights: dict[Key, int] = {}
        self._tensors = 0

    def of(self, source: Checkpoint) -> Checkpoint:
        """The same model, read through this."""
        return source.reading_through(self._shared)

    def _shared(self, tensor: StoredTensor) -> StoredTensor:
        own = tensor.packer.row_step(tensor.shape)
        if tensor.step and (not own or tensor.step % own):
            # Its loader cuts more finely than its bytes can be cut; it is read anew for each output.
            return tensor
        number, self._tensors = self._tensors, self._tensors + 1

        def load(start: int, stop: int) -> PackedTensor:
            return self._rows(number, tensor, start, stop)

        return replace(tensor, load=load)

    def _rows(self, number: int, tensor: StoredTensor, start: int, stop: int) -> PackedTensor:
        rows = tensor.rows
        if (start, stop) == (0, rows) or not tensor.step:
            return self._piece(number, tensor, 0, rows)
        step = max(1, SLICE_WEIGHTS // max(1, tensor.numel // rows) // tensor.step) * tensor.step
        found = []
        for first in range(start // step * step, stop, step):
            last = min(rows, first + step)
            piece = self._piece(number, tensor, first, last)
            low, high = max(start, first) - first, min(stop, last) - first
            found.append(piece if (low, high) == (0, last - first) else cut(piece, low, high))
        return found[0] if len(found) == 1 else stack((stop - start, *tensor.shape[1:]), found)

    def _piece(self, number: int, tensor: StoredTensor, start: int, stop: int) -> PackedTensor:
        """Rows as they are read, by the first that asks for them."""
        key, whole = (number, start, stop), (number, 0, tensor.rows)
        with self._lock:
            reading = self._kept.get(key)
            larger = None if key == whole else self._kept.get(whole)
            if reading is None:
                mine = self._kept[key] = Future()
                self._weights[key] = tensor.numel // max(1, tensor.rows) * (stop - start)
                self._forget()
            else:
                self._kept.move_to_end(key)
        if reading is not None:
            return reading.result()
        try:
            part = tensor.load(start, stop) if larger is None else cut(larger.result(), start, stop)
        except BaseException as error:
            mine.set_exception(error)
            with self._lock:
                if self._kept.get(key) is mine:
                    del self._kept[key], self._weights[key]
            raise
        decoded = _Decoded(part.packer, part.shape, part.fields)
        mine.set_result(decoded)
        return decoded

    def _forget(self) -> None:
        """Let go of what was used longest ago, but never of the latest."""
        while len(self._kept) > 1 and sum(self._weights.values()) > _KEPT:
            oldest, _ = self._kept.popitem(last=False)
            del self._weights[oldest]


@dataclass(frozen=True, eq=False, repr=False)
class _Decoded(PackedTensor):
    """Rows that are decoded once, whoever asks for their values; nobody may change these."""

    _values: list[Tensor] = field(default_factory=list, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def dequantize(self, out: Tensor | None = None) -> Tensor:
        """Value of every element."""
        if out is not None:
            return super().dequantize(out)
        with self._lock:
            if not self._values:
                self._values.append(super().dequantize())
            return self._values[0]
