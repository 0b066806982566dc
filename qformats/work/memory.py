"""Memory of this process and its machine: what is free, and returning what is freed."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["available_nbytes", "return_freed", "told"]


def return_freed() -> None:
    """Return unused pages to the system; only glibc keeps so many that it must be asked.

    After the first large tensors glibc takes tensors of up to 32 MB from its heaps. These shrink only at their ends, so
    that a few small objects between tensors keep gigabytes of them.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        found: Any = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        # Another C library.
        return None
    found.argtypes = [ctypes.c_size_t]
    trim: Callable[[int], int] = found
    return trim


def available_nbytes() -> int:
    """Bytes of memory that this process can still take without swapping; 0 where the system does not tell.

    The machine's, or what is left of the control group's (a container's), if that is less.

    Examples
    --------
    >>> from qformats.work.memory import available_nbytes
    >>> available_nbytes() >= 0
    True
    """
    machine = told("/proc/meminfo", "MemAvailable")
    limit, used = (_number(_GROUP / name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None:
        return machine
    # Pages of files count as used and are given up at once.
    left = max(0, limit - used + (_statistic(_GROUP / "memory.stat", "inactive_file") or 0))
    return min(machine, left) if machine else left


_GROUP = Path("/sys/fs/cgroup")


def told(file: str, key: str) -> int:
    """Bytes that a line of a file of the system tells, such as ``MemAvailable: 123 kB``; 0 if it has none."""
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)


def _number(file: Path) -> int | None:
    """The number in a file; None if there is no file, or the word for no limit."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _statistic(file: Path, key: str) -> int | None:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.split()[0] == key), None)
