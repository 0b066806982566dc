"""Fill: read, convert and write slices of tensors in parallel, with bounded memory."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import xxhash

from qformats.errors import ConfigError, NonFiniteError, OutputError, WeightsError
from qformats.exporting.journal import Journal, Span, Written
from qformats.exporting.plan import Action, Plan, TensorPlan
from qformats.exporting.progress import Progress
from qformats.exporting.signals import interruptible
from qformats.exporting.transcode import Measure, compared, requantize, transcode
from qformats.interfaces import Quantizer
from qformats.kernels.dense import require_finite
from qformats.layout import Placement
from qformats.registry import registry
from qformats.tensors import PackedTensor

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

__all__ = [
    "OutputFiles",
    "Slice",
    "bounded",
    "encode",
    "fill",
    "single_threaded_torch",
    "slices_of",
    "source_bytes",
]

Result = TypeVar("Result")

SLICE_WEIGHTS = 1 << 22
"""Weights a slice: small enough for the second-level caches of a few workers, large enough to hide overheads."""

_PATIENCE = 0.1
"""Seconds between two looks at what the user wants."""
_BUG = "The packer contradicts its own descriptor: tell its authors"


@dataclass(frozen=True)
class Slice:
    """Rows ``[start, stop)`` of one tensor."""

    index: int
    tensor: int
    start: int
    stop: int


def slices_of(plan: Plan) -> list[Slice]:
    """Cut a plan into slices, in the order in which the source lies on disk."""
    order = sorted(
        range(len(plan.tensors)),
        key=lambda i: (
            str(plan.tensors[i].assignment.draft.source.file),
            plan.tensors[i].assignment.draft.source.offset,
        ),
    )
    slices: list[Slice] = []
    for index in order:
        tensor = plan.tensors[index]
        source = tensor.assignment.draft.source
        step = source.rows
        together = math.lcm(source.step, tensor.packer.row_step(source.shape))
        if tensor.before is not None:
            together = math.lcm(together, tensor.before.step)
        if together:
            step = SLICE_WEIGHTS // max(1, source.numel // max(1, source.rows)) // together * together
            step = max(step, together)
        for start in range(0, source.rows, max(1, step)):
            slices.append(Slice(len(slices), index, start, min(source.rows, start + step)))
    return slices


class OutputFiles:
    """The partial files of an export, created at their full size.

    Parameters
    ----------
    plan : Plan
        Says which files, how large, and what their headers hold.
    folder : Path
        Where they lie.

    Raises
    ------
    OutputError
        If the disk cannot hold them.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.paths = [folder / file.name for file in plan.layout.files]
        self._handles: list[int] = []
        self.where: dict[int, list[tuple[int, Placement]]] = {}
        for number, file in enumerate(plan.layout.files):
            for placement in file.placements:
                self.where.setdefault(placement.tensor, []).append((number, placement))
        try:
            self._create()
        except OSError as error:
            self.close()
            raise self._failure(error) from error

    def _create(self) -> None:
        for file, path in zip(self.plan.layout.files, self.paths, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            self._handles.append(handle)
            if os.fstat(handle).st_size != file.size:
                os.ftruncate(handle, file.size)
            if file.size:
                # Reserving the space now tells a full disk before the work, not after it.
                os.posix_fallocate(handle, 0, file.size)
            for offset, content in ((0, file.header), *file.parts):
                _write_at(handle, memoryview(content), offset)

    def _failure(self, error: OSError) -> OutputError:
        target = self.plan.target
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            need = self.plan.layout.nbytes
            return OutputError(
                target,
                f"the disk is full: the output takes {need:,} bytes",
                "Free some space, or choose another disk",
            )
        return OutputError(target, f"cannot be written ({error.strerror or error})")

    def write(self, file: int, data: memoryview, offset: int) -> None:
        """Write all of `data`.

        Raises
        ------
        OutputError
            If the disk is full or fails.
        """
        try:
            _write_at(self._handles[file], data, offset)
        except OSError as error:
            raise self._failure(error) from error

    def digest(self, file: int, offset: int, nbytes: int) -> str:
        """Checksum of what the file holds now."""
        digest = xxhash.xxh3_128()
        while nbytes:
            data = os.pread(self._handles[file], min(nbytes, 4 << 20), offset)
            if not data:
                break
            digest.update(data)
            offset, nbytes = offset + len(data), nbytes - len(data)
        return digest.hexdigest()

    def places(self, piece: Slice) -> list[tuple[int, int, int, str]]:
        """File, offset, number of bytes and field of everything that a slice consists of."""
        tensor = self.plan.tensors[piece.tensor]
        shape, rows = tensor.assignment.draft.source.shape, tensor.assignment.draft.source.rows
        found = []
        for file, placement in self.where.get(piece.tensor, []):
            first, last = 0, placement.nbytes
            if (piece.start, piece.stop) != (0, rows):
                if placement.field in tensor.fixed:
                    # Known from the plan: it goes with the first slice.
                    last = 0 if piece.start else last
                else:
                    first, last = tensor.packer.span(placement.field, shape, piece.start, piece.stop)
            if last > first or not placement.nbytes:
                found.append((file, placement.offset + first, last - first, placement.field))
        return found

    def recovered(self, piece: Slice, spans: Sequence[Span]) -> bool:
        """Whether spans that a journal tells are this slice's, and the files hold what their checksums say."""
        told = [(span.file, span.offset, span.nbytes) for span in spans]
        return told == [place[:3] for place in self.places(piece)] and self.holds(spans)

    def holds(self, spans: Sequence[Span]) -> bool:
        """Whether the files hold what the checksums say."""
        return all(self.digest(span.file, span.offset, span.nbytes) == span.digest for span in spans)

    def sync(self) -> None:
        """Wait until everything is on the disk."""
        try:
            for handle in self._handles:
                os.fsync(handle)
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Close all files."""
        while self._handles:
            os.close(self._handles.pop())


def _write_at(handle: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(handle, data, offset)
        data, offset = data[written:], offset + written


def fill(
    plan: Plan,
    slices: Sequence[Slice],
    files: OutputFiles,
    journal: Journal,
    workers: int,
    progress: Progress,
) -> None:
    """Write every slice that the journal does not hold yet.

    Raises
    ------
    ConfigError
        If a packer gives other bytes than its format describes.
    WeightsError
        If a weight cannot be written, naming its tensor.
    OutputError
        If the disk is full or fails.
    """
    quantizer = registry().quantizer(plan.recipe.quantizer)
    pending = [piece for piece in slices if piece.index not in journal.done]
    progress.start("writing", sum(source_bytes(plan, piece) for piece in pending))
    stopped = threading.Event()

    def work(piece: Slice) -> Written:
        return Written([]) if stopped.is_set() else _convert(plan, piece, files, quantizer)

    with (
        single_threaded_torch(),
        interruptible() as deliver,
        ThreadPoolExecutor(workers, "qformats-fill") as pool,
    ):
        try:
            for piece, written in bounded(pool, work, plan, pending, 2 * workers, deliver):
                journal.add(piece.index, written)
                progress.advance(source_bytes(plan, piece))
        except BaseException:
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise


@contextlib.contextmanager
def single_threaded_torch() -> Iterator[None]:
    """One thread a slice is the parallelism; torch's own threads would only get in its way."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def bounded(
    pool: ThreadPoolExecutor,
    work: Callable[[Slice], Result],
    plan: Plan,
    pieces: Sequence[Slice],
    limit: int,
    deliver: Callable[[], None],
) -> Iterator[tuple[Slice, Result]]:
    """Results as they come, with at most `limit` slices in flight, or as many weights as that many slices have.

    A tensor that cannot be sliced may be larger than all of that: it is converted alone. Between its steps, several
    times a second, signals are delivered (see :func:`~qformats.exporting.signals.interruptible`).
    """
    waiting: dict[Future[Result], Slice] = {}
    queue = deque(pieces)
    weights = 0
    while queue or waiting:
        deliver()
        while queue and len(waiting) < limit:
            more = _weights(plan, queue[0])
            if waiting and weights + more > limit * SLICE_WEIGHTS:
                break
            piece = queue.popleft()
            waiting[pool.submit(work, piece)] = piece
            weights += more
        done, _ = wait(waiting, _PATIENCE, FIRST_COMPLETED)
        for future in done:
            piece = waiting.pop(future)
            weights -= _weights(plan, piece)
            yield piece, future.result()


def _weights(plan: Plan, piece: Slice) -> int:
    source = plan.tensors[piece.tensor].assignment.draft.source
    return source.numel // max(1, source.rows) * (piece.stop - piece.start)


def source_bytes(plan: Plan, piece: Slice) -> int:
    """Stored bytes that a slice is read from."""
    source = plan.tensors[piece.tensor].assignment.draft.source
    return source.nbytes * (piece.stop - piece.start) // max(1, source.rows)


def _convert(plan: Plan, piece: Slice, files: OutputFiles, quantizer: Quantizer) -> Written:
    tensor = plan.tensors[piece.tensor]
    source = tensor.assignment.draft.source
    part = source.read(piece.start, piece.stop)
    packed, measure = encode(tensor, part, quantizer, piece.start)
    # What was packed for the slice alone gets the fields of the whole tensor; what is copied has its own.
    fields = packed.fields if packed is part else {**packed.fields, **tensor.fixed}
    spans = []
    for file, offset, nbytes, field in files.places(piece):
        if field not in fields:
            found = f"{tensor.packer.name}: fields of tensor {tensor.name!r}"
            raise ConfigError(found, sorted(fields), f"{field!r} among them", _BUG)
        data = _bytes_of(fields[field])
        if len(data) != nbytes:
            size = f"{tensor.packer.name}: bytes of {field!r} in rows {piece.start} to {piece.stop} of tensor"
            raise ConfigError(f"{size} {tensor.name!r}", len(data), f"{nbytes}", _BUG)
        files.write(file, data, offset)
        spans.append(Span(file, offset, nbytes, xxhash.xxh3_128_hexdigest(data)))
    return Written(spans, measure)


def encode(
    tensor: TensorPlan, part: PackedTensor, quantizer: Quantizer, start: int
) -> tuple[PackedTensor, Measure | None]:
    """Do with a slice of a tensor what the plan says.

    Parameters
    ----------
    tensor : TensorPlan
        What becomes of the tensor.
    part : PackedTensor
        Some of its rows, as the source stores them.
    quantizer : Quantizer
        Chooses codes.
    start : int
        First of these rows, for messages.

    Returns
    -------
    tuple of PackedTensor and (Measure or None)
        The slice in its new format, without the fields that follow from the whole tensor; and what became of its
        values, where a quantized format took the place of another one.

    Raises
    ------
    WeightsError
        If a weight cannot be written, naming its tensor.
    """
    source_packer, packer = registry().packer(part.format), tensor.packer
    source = tensor.assignment.draft.source
    dense: Tensor | None = None
    if part.format == packer.name and packer.dense_dtype is None:
        # Copied, or packed already: by a quantizer that prepared the model, or to rearrange its rows.
        return part, _measure_of(tensor, part, start)
    try:
        match tensor.action:
            case Action.COPY:
                (dense,) = part.fields.values()
                require_finite(dense)
                return PackedTensor(packer.name, part.shape, {packer.spec.fields[0].name: dense}), None
            case Action.TRANSCODE:
                return transcode(part, source_packer, packer, quantizer)
            case Action.REQUANTIZE:
                return requantize(part, source_packer, packer, quantizer, tensor.reason)
        if source_packer.dense_dtype is not None:
            (dense,) = part.fields.values()
        else:
            dense = source_packer.dequantize(part)
        if tensor.action is Action.QUANTIZE:
            return quantizer.encode(dense, packer), None
        return packer.encode_reference(dense), None
    except NonFiniteError as error:
        where = f" (in rows from {start})" if start else ""
        raise WeightsError(str(source.file), source.name, error.found + where, error.hint) from error


def _measure_of(tensor: TensorPlan, part: PackedTensor, start: int) -> Measure | None:
    """What became of a slice that was packed before, if it came from a quantized tensor."""
    if tensor.before is not None:
        return compared(tensor.before.read(start, start + part.shape[0]), part, tensor.reason)
    weights = math.prod(part.shape)
    return Measure(weights, weights) if tensor.action is Action.TRANSCODE else None


def _bytes_of(tensor: Tensor) -> memoryview:
    import torch

    flat = tensor.contiguous().reshape(-1)
    data: np.ndarray[Any, np.dtype[np.uint8]] = flat.view(torch.uint8).numpy()
    return data.data
