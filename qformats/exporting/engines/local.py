"""The local engine: the threads of this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from qformats.exporting.fill import Output, OutputFiles, Slice, convert, room_for, weights_of
from qformats.exporting.journal import Span, Written
from qformats.exporting.source_digest import SourceDigest
from qformats.interfaces.checkpoint import Checkpoint
from qformats.work.pool import bounded, threads
from qformats.work.progress import Progress

__all__ = ["Local"]

_READ_AHEAD = 1 << 30
"""Bytes of the output that are read again at a time."""


class Local:
    """Converts in the threads of this process; see :class:`~qformats.exporting.engines.engine.Engine`."""

    def written(
        self, pending: Sequence[tuple[Output, Slice]], workers: int | None, progress: Progress
    ) -> AbstractContextManager[Iterator[tuple[tuple[Output, Slice], Written]]]:
        """Convert slices in several threads, with bounded memory."""
        workers = threads(workers)
        # Seconds, the first time; the pool below would take them without a word.
        progress.start("loading torch", 0)
        import torch  # noqa: F401

        outputs = len({id(output) for output, _ in pending})
        return bounded(
            lambda each: convert(each[0].plan, each[1], each[0].files, each[0].check),
            pending,
            workers,
            weight=lambda each: weights_of(each[0].plan, each[1]),
            limit=room_for([weights_of(each.plan, piece) for each, piece in pending], workers, outputs),
        )

    def source(self, source: Checkpoint, order: Sequence[Path]) -> SourceDigest:
        """Read the files right behind the conversion, which has brought them into memory."""
        return SourceDigest(source, order)

    def compared(
        self, files: OutputFiles, spans: Sequence[Span], workers: int | None
    ) -> AbstractContextManager[Iterator[tuple[Span, bool]]]:
        """Read the files again in several threads."""
        return bounded(
            lambda span: files.match([span]),
            spans,
            threads(workers),
            weight=lambda span: span.nbytes,
            limit=_READ_AHEAD,
        )
