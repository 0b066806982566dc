"""What an engine does for an export: the three passes that read or write everything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from qformats.errors import BackendUnavailableError

if TYPE_CHECKING:
    from qformats.exporting.fill import Output, OutputFiles, Slice
    from qformats.exporting.journal import Span, Written
    from qformats.interfaces.checkpoint import Checkpoint
    from qformats.work.progress import Progress

__all__ = ["Engine", "SourceReader", "WorkersLost"]


class WorkersLost(BackendUnavailableError):
    """The machines that an export runs on are gone; what they have written is kept, to go on from there."""


class SourceReader(Protocol):
    """Reads the files of a model for their checksums."""

    def reach(self, share: float) -> None:
        """The conversion has read this share of the model."""

    def finish(self) -> Mapping[str, tuple[int, str]]:
        """Bytes and checksum of every file, by name."""


class Engine(Protocol):
    """Where the work of an export is done; the export itself, its journal and its target stay with the caller."""

    def written(
        self, pending: Sequence[tuple[Output, Slice]], workers: int | None, progress: Progress
    ) -> AbstractContextManager[Iterator[tuple[tuple[Output, Slice], Written]]]:
        """Convert slices and write them into the partial files; gives each when its bytes are written.

        Parameters
        ----------
        pending : sequence of (Output, Slice)
            What is not written yet.
        workers : int or None
            Threads; of each task, where there are several.
        progress : Progress
            Receives notices, and what is done before the first slice.
        """

    def source(self, source: Checkpoint, order: Sequence[Path]) -> AbstractContextManager[SourceReader]:
        """What takes the checksums of a model's files, in the order in which the conversion reads them."""

    def compared(
        self, files: OutputFiles, spans: Sequence[Span], workers: int | None
    ) -> AbstractContextManager[Iterator[tuple[Span, bool]]]:
        """Whether each span of the partial files still has the checksum that was taken when it was written."""
