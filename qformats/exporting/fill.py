"""Fill: read, convert and write slices of tensors in parallel, with bounded memory."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import math
import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import xxhash

from qformats.errors import ConfigError, NonFiniteError, OutputError, PluginError, WeightsError
from qformats.exporting.journal import Journal, Span, Written
from qformats.exporting.plan import Action, Plan, TensorPlan
from qformats.exporting.selfcheck import SelfCheck
from qformats.exporting.sound import require_sound, vanished
from qformats.exporting.transcode import Encoder, Measure, compared, requantize, total, transcode
from qformats.exporting.weighing import Weighed
from qformats.interfaces.layout import Placement
from qformats.interfaces.packer import PackedTensor
from qformats.interfaces.quantizer import Quantizer
from qformats.interfaces.rows import cut, stack
from qformats.kernels.dense import require_finite
from qformats.work.checksums import digest
from qformats.work.memory import available_nbytes
from qformats.work.pool import bounded
from qformats.work.writeback import begin_writeback

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

__all__ = [
    "Output",
    "OutputFiles",
    "Places",
    "Slice",
    "bytes_of",
    "convert",
    "encode",
    "in_slices",
    "room_for",
    "slices_of",
    "source_bytes",
    "weights_of",
]

Result = TypeVar("Result")

SLICE_WEIGHTS = 1 << 22
"""Weights per slice: small enough for the second-level caches of a few workers, large enough to hide overheads."""

_WHOLE_NBYTES = 16
"""Bytes per weight that a slice takes while it is worked on: GPTQ to AWQ took 8, rounding bfloat16 to GPTQ 14."""

_BUG = "The packer contradicts its own descriptor: report it to its authors"


@dataclass(frozen=True)
class Slice:
    """Rows ``[start, stop)`` of one tensor."""

    index: int
    tensor: int
    start: int
    stop: int


def slices_of(plan: Plan) -> list[Slice]:
    """Cut a plan into slices, in the order of the source on disk."""
    order = sorted(
        range(len(plan.tensors)),
        key=lambda i: (
            str(plan.tensors[i].source.file),
            plan.tensors[i].source.offset,
        ),
    )
    slices: list[Slice] = []
    for index in order:
        tensor = plan.tensors[index]
        source = tensor.source
        step = 1 if source.separate else source.rows
        together = math.lcm(source.step, tensor.packer.row_step(source.shape))
        if tensor.before is not None:
            together = math.lcm(together, tensor.before.step)
        if together and not source.separate:
            step = SLICE_WEIGHTS // max(1, source.numel // max(1, source.rows)) // together * together
            step = max(step, together)
        for start in range(0, source.rows, max(1, step)):
            slices.append(Slice(len(slices), index, start, min(source.rows, start + step)))
    return slices


class Places:
    """Where the bytes of each slice of a plan lie in its files.

    Parameters
    ----------
    plan : Plan
        Says which files there are, and where tensors go.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.where: dict[int, list[tuple[int, Placement]]] = {}
        for number, file in enumerate(plan.layout.files):
            for placement in file.placements:
                self.where.setdefault(placement.tensor, []).append((number, placement))

    def places(self, piece: Slice) -> list[tuple[int, int, int, str]]:
        """File, offset, number of bytes and field of everything that a slice consists of."""
        tensor = self.plan.tensors[piece.tensor]
        shape, rows = tensor.source.shape, tensor.source.rows
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


class OutputFiles(Places):
    """The partial files of an export, created at their full size.

    Parameters
    ----------
    plan : Plan
        Says which files, how large, and what their headers hold.
    folder : Path
        Where to store them.

    Raises
    ------
    OutputError
        If the disk cannot hold them.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        super().__init__(plan)
        self.paths = [folder / file.name for file in plan.layout.files]
        self._handles: list[int] = []
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
                # Reserving the space now reveals a full disk before the work, not after it.
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
        begin_writeback(self._handles[file], offset, len(data))

    def digest(self, file: int, offset: int, nbytes: int) -> str:
        """Checksum of what the file holds now."""
        return digest(self._handles[file], offset, nbytes)

    def recovered(self, piece: Slice, spans: Sequence[Span]) -> bool:
        """Whether spans from a journal are this slice's, and the files match their checksums."""
        told = [(span.file, span.offset, span.nbytes) for span in spans]
        return told == [place[:3] for place in self.places(piece)] and self.match(spans)

    def match(self, spans: Sequence[Span]) -> bool:
        """Whether the files match the checksums."""
        return all(self.digest(span.file, span.offset, span.nbytes) == span.digest for span in spans)

    @contextlib.contextmanager
    def mapped(self, file: int) -> Iterator[memoryview]:
        """A whole file, read-only; nothing is read until used."""
        size = self.plan.layout.files[file].size
        if not size:
            yield memoryview(b"")
            return
        with (
            mmap.mmap(self._handles[file], size, prot=mmap.PROT_READ) as content,
            memoryview(content) as view,
        ):
            yield view

    def sync(self) -> None:
        """Wait until everything is on the disk."""
        try:
            for handle in self._handles:
                os.fsync(handle)
        except OSError as error:
            raise self._failure(error) from error

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Let other processes write the files, on this machine or on others that share the file system.

        A network file system shows what one machine has written to another that opens the file later, and may lose
        what both write into one page.

        Raises
        ------
        OutputError
            If the disk fails.
        """
        self.sync()
        self.close()
        yield
        try:
            for path in self.paths:
                self._handles.append(os.open(path, os.O_RDWR))
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


@dataclass(frozen=True, eq=False)
class Output:
    """An output that is being written.

    Attributes
    ----------
    plan : Plan
        What becomes of the source.
    slices : sequence of Slice
        Of the plan, in the order of the source.
    files : OutputFiles
        Where the bytes go.
    journal : Journal
        Which slices are written.
    check : SelfCheck
        Looks at the first rows of each tensor.
    """

    plan: Plan
    slices: Sequence[Slice]
    files: OutputFiles
    journal: Journal
    check: SelfCheck = dataclasses.field(default_factory=SelfCheck)


def room_for(weights: Sequence[int], workers: int, outputs: int) -> int:
    """Most weights in flight.

    Formats that take whole tensors would be worked on alone, on one core, if their slices were not given more room than
    usual ones: that of one for each thread, as far as a quarter of the free memory holds them.
    """
    heaviest = max(weights, default=0)
    free = available_nbytes() // 4 // (heaviest * _WHOLE_NBYTES) if heaviest else 0
    together = heaviest * max(1, min(workers, free))
    return max(2 * workers * SLICE_WEIGHTS, together) + (heaviest if outputs > 1 else 0)


def in_slices(
    plan: Plan, work: Callable[[Slice], Result], slices: Sequence[Slice], workers: int
) -> AbstractContextManager[Iterator[tuple[Slice, Result]]]:
    """Work on slices of a plan, in any order; see :func:`qformats.work.pool.bounded`."""
    return bounded(
        work,
        slices,
        workers,
        weight=lambda piece: weights_of(plan, piece),
        limit=room_for([weights_of(plan, piece) for piece in slices], workers, 1),
    )


def weights_of(plan: Plan, piece: Slice) -> int:
    """Weights of a slice."""
    source = plan.tensors[piece.tensor].source
    return source.numel // max(1, source.rows) * (piece.stop - piece.start)


def source_bytes(plan: Plan, piece: Slice) -> int:
    """Stored bytes that a slice is read from."""
    source = plan.tensors[piece.tensor].source
    return source.nbytes * (piece.stop - piece.start) // max(1, source.rows)


def convert(plan: Plan, piece: Slice, files: OutputFiles, check: SelfCheck) -> Written:
    """Read a slice, do what the plan says with it, and write it into the partial files.

    Raises
    ------
    ConfigError
        If a packer gives other bytes than its format describes.
    WeightsError
        If a weight cannot be written, naming its tensor.
    OutputError
        If the disk is full or fails.
    """
    tensor = plan.tensors[piece.tensor]
    source = tensor.source
    part = source.read(piece.start, piece.stop)
    try:
        packed, measure = encode(tensor, part, plan.quantizer, piece.start)
        # A slice packed by itself gets the fields of the whole tensor; a copied one has its own.
        fields = packed.fields if packed is part else {**packed.fields, **tensor.fixed}
        placed = _placed(tensor, piece, fields, files)
        if not piece.start:
            check(tensor, part, packed, plan.quantizer, measure)
        kept = packed is part or tensor.action is Action.COPY
        zeros = 0 if kept or (measure and measure.exact == measure.weights) else vanished(part, packed)
    except PluginError as error:
        error.about(tensor=tensor.name)
        raise
    spans = []
    for file, offset, data in placed:
        files.write(file, data, offset)
        spans.append(Span(file, offset, len(data), xxhash.xxh3_128_hexdigest(data)))
    return Written(spans, measure, zeros)


def _placed(
    tensor: TensorPlan, piece: Slice, fields: Mapping[str, Tensor], files: OutputFiles
) -> list[tuple[int, int, memoryview]]:
    """File, offset and bytes of every field of a slice, if they are as many as the plan has room for."""
    placed = []
    for file, offset, nbytes, field in files.places(piece):
        if field not in fields:
            found = f"{tensor.packer.name}: fields of tensor {tensor.name!r}"
            raise ConfigError(found, sorted(fields), f"{field!r} among them", _BUG)
        data = bytes_of(fields[field])
        if len(data) != nbytes:
            size = f"{tensor.packer.name}: bytes of {field!r} in rows {piece.start} to {piece.stop} of tensor"
            raise ConfigError(f"{size} {tensor.name!r}", len(data), f"{nbytes}", _BUG)
        placed.append((file, offset, data))
    return placed


def encode(
    tensor: TensorPlan, part: PackedTensor, quantizer: Quantizer, start: int
) -> tuple[PackedTensor, Measure | None]:
    """Do what the plan says with a slice of a tensor.

    Parameters
    ----------
    tensor : TensorPlan
        What is done with the tensor.
    part : PackedTensor
        Some of its rows, as the source stores them.
    quantizer : Quantizer
        Chooses codes.
    start : int
        First of these rows, for messages.

    Returns
    -------
    tuple of PackedTensor and (Measure or None)
        The slice in its new format, without the fields that follow from the whole tensor; and how its
        values changed, if one quantized format replaced another.

    Raises
    ------
    WeightsError
        If a weight cannot be written, naming its tensor.
    """
    packer = tensor.packer
    source = tensor.source
    dense: Tensor | None = None
    encoder: Encoder = quantizer
    if packer.quantizes and packer.by_matrix(part.shape) and part.shape[0] > 1 and part.format != packer.name:
        return _by_matrix(tensor, part, quantizer, start)
    if tensor.importance is not None:
        if len(tensor.importance) > 1 and part.shape[0] > 1:
            return _by_matrix(tensor, part, quantizer, start)
        encoder = Weighed(quantizer, tensor.importance[start if len(tensor.importance) > 1 else 0])
    try:
        if part.format == packer.name and packer.quantizes:
            # Copied, or packed already: by a quantizer that prepared the model, or to rearrange its rows.
            require_sound(part)
            return part, _measure_of(tensor, part, start)
        match tensor.action:
            case Action.COPY:
                (dense,) = part.fields.values()
                require_finite(dense)
                kept = PackedTensor(packer, part.shape, {packer.spec.fields[0].name: dense})
                return kept, _change_of(tensor, kept, start)
            case Action.TRANSCODE:
                return transcode(part, tensor.keeps, encoder)
            case Action.REQUANTIZE:
                return requantize(part, tensor.chooses, encoder, tensor.reason)
        if part.packer.quantizes:
            dense = part.dequantize()
        else:
            (dense,) = part.fields.values()
        if tensor.action is Action.QUANTIZE:
            return encoder.encode(dense, tensor.chooses), None
        cast = packer.encode_reference(dense)
        return cast, _change_of(tensor, cast, start)
    except NonFiniteError as error:
        where = f" (in rows from {start})" if start else ""
        raise WeightsError(str(source.file), source.name, error.found + where, error.hint) from error


def _by_matrix(
    tensor: TensorPlan, part: PackedTensor, quantizer: Quantizer, start: int
) -> tuple[PackedTensor, Measure | None]:
    """A slice of stacked matrices, each with importances or with stored numbers of its own."""
    done = [encode(tensor, cut(part, i, i + 1), quantizer, start + i) for i in range(part.shape[0])]
    measures = [measure for _, measure in done if measure is not None]
    # Packed by itself, a matrix has two dimensions.
    matrices = [dataclasses.replace(packed, shape=(1, *part.shape[1:])) for packed, _ in done]
    return stack(part.shape, matrices), total(measures) if measures else None


def _change_of(tensor: TensorPlan, part: PackedTensor, start: int) -> Measure | None:
    """How far a plain slice is from what it was before a quantizer changed it along with the weights."""
    if tensor.before is None:
        return None
    rows = part.shape[0] if part.shape else 1
    return compared(tensor.before.read(start, start + rows), part, "changed along with the quantized weights")


def _measure_of(tensor: TensorPlan, part: PackedTensor, start: int) -> Measure | None:
    """How the values of an already packed slice changed, if it came from a quantized tensor."""
    if tensor.before is not None:
        return compared(tensor.before.read(start, start + part.shape[0]), part, tensor.reason)
    weights = math.prod(part.shape)
    return Measure(weights, weights) if tensor.action is Action.TRANSCODE else None


def bytes_of(tensor: Tensor) -> memoryview:
    """Bytes of a tensor as files hold them."""
    import torch

    flat = tensor.contiguous().reshape(-1)
    data: np.ndarray[Any, np.dtype[np.uint8]] = flat.view(torch.uint8).numpy()
    return data.data
