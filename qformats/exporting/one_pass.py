"""One pass over the source: every slice that the journals do not hold yet, converted by an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qformats.exporting.engines.engine import Engine
from qformats.exporting.fill import Output, Slice, source_bytes
from qformats.work.memory import return_freed
from qformats.work.progress import Progress

__all__ = ["fill"]

_FREED = 1 << 28
"""Bytes of the source after which freed memory is returned; otherwise what the threads' heaps keep of it grows with the
model: 2.6 GB took 290 MB more than 0.3 GB."""


def fill(
    outputs: Sequence[Output],
    engine: Engine,
    workers: int | None,
    progress: Progress,
    reached: Callable[[float], object] | None = None,
) -> None:
    """Write every slice that the journals do not hold yet, of all outputs in one pass over the source.

    Parameters
    ----------
    outputs : sequence of Output
        What is written.
    engine : Engine
        Does the work.
    workers : int or None
        Threads.
    progress : Progress
        Receives progress reports.
    reached : callable, optional
        Called with the share of the source that has been read.

    Raises
    ------
    ConfigError
        If a packer gives other bytes than its format describes.
    WeightsError
        If a weight cannot be written, naming its tensor.
    OutputError
        If the disk is full or fails.
    """
    pending = [
        (output, piece)
        for output in outputs
        for piece in output.slices
        if piece.index not in output.journal.done
    ]
    if len(outputs) > 1:
        # What is read of a tensor serves all outputs, whole tensors first: slices are cut from them.
        pending.sort(key=lambda each: _position(*each))
    total, done = sum(source_bytes(output.plan, piece) for output, piece in pending), 0
    with engine.written(pending, workers, progress) as written:
        progress.start("writing", total)
        for (output, piece), each in written:
            output.journal.add(piece.index, each)
            nbytes = source_bytes(output.plan, piece)
            progress.advance(nbytes)
            done += nbytes
            if done // _FREED > (done - nbytes) // _FREED:
                return_freed()
            if reached is not None:
                reached(done / max(1, total))


def _position(output: Output, piece: Slice) -> tuple[str, int, int, int]:
    """Where a slice stands in the pass over the source."""
    source = output.plan.tensors[piece.tensor].source
    return str(source.file), source.offset, piece.start, -piece.stop
