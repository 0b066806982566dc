"""Tensors: whether each can be read, holds finite numbers, and has codes of its format's grid.

Formats answer through their packers' own methods, so that those of third parties are looked at as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qformats.errors import NonFiniteError, QFormatsError
from qformats.exporting.sound import require_sound
from qformats.interfaces.checkpoint import Checkpoint
from qformats.interfaces.packer import PackedTensor
from qformats.interfaces.rows import cut
from qformats.interfaces.stored import StoredTensor
from qformats.kernels.dense import require_finite
from qformats.numbers.dtypes import FLOATS
from qformats.verifying.collecting import Findings, clause
from qformats.work.pool import bounded
from qformats.work.progress import Progress

__all__ = ["check_tensors"]

_WEIGHTS = 1 << 22
"""Weights that are looked at at a time."""


@dataclass(frozen=True)
class _Rows:
    """Rows ``[start, stop)`` of a tensor."""

    tensor: StoredTensor
    start: int
    stop: int

    @property
    def weights(self) -> int:
        """How many there are."""
        return self.tensor.numel // max(1, self.tensor.rows) * (self.stop - self.start)

    @property
    def nbytes(self) -> int:
        """Stored bytes of them."""
        return self.tensor.nbytes * (self.stop - self.start) // max(1, self.tensor.rows)


def check_tensors(source: Checkpoint, findings: Findings, workers: int, progress: Progress) -> None:
    """Read every tensor, in slices where its format has them."""
    pieces = [piece for tensor in source.tensors.values() for piece in _slices(tensor)]
    progress.start("reading the tensors", sum(piece.nbytes for piece in pieces))

    def work(piece: _Rows) -> None:
        tensor = piece.tensor
        with findings.about("tensor", file=tensor.file.name, tensor=tensor.name):
            part = tensor.read(piece.start, piece.stop)
            for one in _matrices(part):
                _look(one, tensor, findings)

    with bounded(
        work, pieces, workers, weight=lambda piece: piece.weights, limit=2 * workers * _WEIGHTS, ordered=True
    ) as looked_at:
        for piece, _ in looked_at:
            progress.advance(piece.nbytes)


def _slices(tensor: StoredTensor) -> Iterator[_Rows]:
    width = max(1, tensor.numel // max(1, tensor.rows))
    step = 1 if tensor.separate else max(1, tensor.rows)
    if tensor.step and not tensor.separate:
        step = max(tensor.step, _WEIGHTS // width // tensor.step * tensor.step)
    for start in range(0, tensor.rows, step):
        yield _Rows(tensor, start, min(tensor.rows, start + step))


def _matrices(part: PackedTensor) -> Iterator[PackedTensor]:
    """The part, or each matrix of a stack that is packed matrix by matrix."""
    if not part.packer.quantizes or not part.packer.by_matrix(part.shape):
        yield part
        return
    for index in range(part.shape[0]):
        yield cut(part, index, index + 1)


def _look(part: PackedTensor, tensor: StoredTensor, findings: Findings) -> None:
    packer, place = part.packer, {"file": tensor.file.name, "tensor": tensor.name}
    try:
        if not packer.quantizes:
            if packer.dense_dtype in FLOATS:
                require_finite(next(iter(part.fields.values())))
            return
        require_sound(part)
    except NonFiniteError as error:
        findings.add("values", error.found, **place)
        return
    if not packer.readable or not all(part.shape):
        return
    if not packer.spec.level:
        try:
            require_finite(packer.dequantize(part))
        except NonFiniteError as error:
            findings.add("values", error.found, **place)
        return
    codes = packer.unpack(part)
    if packer.grid is None or packer.veto(codes.shape) is not None:
        return
    largest = int(codes.codes.max())
    if largest >= packer.grid.levels:
        found = f"off the grid of {packer.name}: a code of {largest}, and the last one is {packer.grid.levels - 1}"
        findings.add("codes", found, **place)
        return
    if not packer.writable:
        return
    try:
        # What a format reads it must be able to write, unless a code or a parameter is not one of its own.
        packer.pack(codes)
    except QFormatsError as error:
        findings.add("codes", f"off the grid of {packer.name}: {clause(error)}", **place)
