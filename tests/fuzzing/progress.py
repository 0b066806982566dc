"""What a worker tells its watchdog, in shared memory: how far it is, and the input that it has in hand."""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

__all__ = ["Progress"]

_COUNTS = struct.Struct("<5Q")
_ROOM = 4 << 20


class Progress:
    """Counts of one worker, and its input.

    Parameters
    ----------
    file : Path
        Made if it is missing.
    """

    def __init__(self, file: Path) -> None:
        with open(os.open(file, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as stream:
            stream.truncate(_COUNTS.size + _ROOM)
            self._data = mmap.mmap(stream.fileno(), _COUNTS.size + _ROOM)

    def begin(self, data: bytes) -> None:
        """Tell which input comes next."""
        held = data[:_ROOM]
        self._data[_COUNTS.size : _COUNTS.size + len(held)] = held
        self._data[32:40] = struct.pack("<Q", len(held))

    def count(self, executions: int, results: int, refusals: int, faults: int) -> None:
        """Tell how far it is."""
        self._data[:32] = struct.pack("<4Q", executions, results, refusals, faults)

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Executions, results, refusals and faults."""
        executions, results, refusals, faults, _ = _COUNTS.unpack_from(self._data)
        return executions, results, refusals, faults

    @property
    def held(self) -> bytes:
        """The input in hand."""
        length = _COUNTS.unpack_from(self._data)[4]
        return self._data[_COUNTS.size : _COUNTS.size + length]
