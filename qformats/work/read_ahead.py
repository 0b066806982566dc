"""Read-ahead: what is needed next of a file is brought into the page cache while something else is done."""

from __future__ import annotations

import os
import queue
import threading
from pathlib import Path
from types import TracebackType

__all__ = ["ReadAhead"]

_WINDOW = 512 << 20
"""Bytes read in advance: half a second of a fast disk, and more than a tensor of most models."""
_CHUNK = 8 << 20


class ReadAhead:
    """Read files in advance of whoever maps them, in a thread of its own.

    A mapped file is read when it is touched, a few pages at a time, with nothing else going on. What the page cache
    holds already is not read again.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from qformats.work.read_ahead import ReadAhead
    >>> with tempfile.TemporaryDirectory() as folder, ReadAhead() as ahead:
    ...     file = pathlib.Path(folder, "weights")
    ...     _ = file.write_bytes(bytes(1 << 20))
    ...     ahead.reach(file, 0, 4096)
    """

    def __init__(self) -> None:
        self._asked: dict[Path, int] = {}
        self._queue: queue.SimpleQueue[tuple[Path, int, int] | None] = queue.SimpleQueue()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = True
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join()

    def reach(self, file: str | Path, offset: int, nbytes: int) -> None:
        """Have these bytes of a file read, and what follows them, unless they have been.

        Parameters
        ----------
        file : str or Path
            Whether it can be read is found out by whoever needs it.
        offset, nbytes : int
            What is needed next.
        """
        file = Path(file)
        asked, wanted = self._asked.get(file, 0), offset + nbytes + _WINDOW
        # In pieces of half a window, so that small tensors cost nothing.
        if wanted - asked < _WINDOW // 2:
            return
        self._asked[file] = wanted
        self._queue.put((file, max(offset, asked), wanted))
        if self._thread is None:
            self._thread = threading.Thread(target=self._read, name="read-ahead", daemon=True)
            self._thread.start()

    def _read(self) -> None:
        room = memoryview(bytearray(_CHUNK))
        while (job := self._queue.get()) is not None:
            file, start, stop = job
            try:
                handle = os.open(file, os.O_RDONLY)
            except OSError:
                continue
            try:
                while start < stop and not self._stopped and _brought(handle, room, start):
                    start += _CHUNK
            except OSError:
                continue
            finally:
                os.close(handle)


def _brought(handle: int, room: memoryview, start: int) -> bool:
    """Read a chunk, unless the page cache holds it; whether the file goes on there."""
    if not hasattr(os, "preadv"):
        return False
    # Files are read from front to back.
    return _holds(handle, start + _CHUNK - 1) or os.preadv(handle, [room], start) > 0


def _holds(handle: int, place: int) -> bool:
    """Whether the page cache holds a byte, as far as the system tells."""
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    try:
        return os.preadv(handle, [bytearray(1)], place, os.RWF_NOWAIT) == 1
    except OSError:
        return False
