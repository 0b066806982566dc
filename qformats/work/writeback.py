"""Telling the system to begin with the disk's work, which it would put off until somebody waits for it."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

__all__ = ["begin_writeback"]

_WRITE = 2
"""``SYNC_FILE_RANGE_WRITE``: begin to write what is not being written yet, and do not wait."""


def begin_writeback(handle: int, offset: int, nbytes: int) -> None:
    """Have the disk begin to store a part of a file, where the system can be told.

    Nothing is promised: `os.fsync` waits, and says what went wrong. Writing 4.5 GB and then waiting took an export
    7.2 s on a machine whose disk alone takes 4.5 (16 cores, 2026-11-30).

    Parameters
    ----------
    handle : int
        Of a file that is open for writing.
    offset, nbytes : int
        The part.

    Examples
    --------
    >>> import tempfile
    >>> from qformats.work.writeback import begin_writeback
    >>> with tempfile.TemporaryFile() as file:
    ...     _ = file.write(b"text")
    ...     begin_writeback(file.fileno(), 0, 4)
    """
    call = _call()
    if call is not None:
        call(handle, offset, nbytes, _WRITE)


@functools.cache
def _call() -> Any:
    """Linux has it, and no other system."""
    try:
        call = ctypes.CDLL(None).sync_file_range
    except (AttributeError, OSError):
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return call
