"""Whether kernels are being compiled just now, for whoever shows progress.

A kernel is compiled when it is first used, which takes seconds during which nothing else advances. What compiles calls
:func:`began` and :func:`ended`; what shows progress listens with :func:`watched`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

__all__ = ["began", "ended", "watched"]

_lock = threading.Lock()
_depth = 0
"""Compilations that are going on: of a kernel, and of what it calls within that."""
_watchers: list[Callable[[bool], None]] = []


@contextlib.contextmanager
def watched(tell: Callable[[bool], None]) -> Iterator[None]:
    """Call a function with ``True`` when compiling begins and with ``False`` when it is over.

    It is called from the thread that compiles.

    Examples
    --------
    >>> from qformats.work import compiling
    >>> with compiling.watched(print):
    ...     compiling.began()
    ...     compiling.ended()
    True
    False
    """
    with _lock:
        _watchers.append(tell)
    try:
        yield
    finally:
        with _lock:
            _watchers.remove(tell)


def began() -> None:
    """A kernel is going to be compiled."""
    _count(1)


def ended() -> None:
    """A kernel is compiled, or could not be."""
    _count(-1)


def _count(change: int) -> None:
    global _depth
    with _lock:
        before, _depth = _depth, _depth + change
        told = list(_watchers) if bool(before) != bool(_depth) else []
        running = bool(_depth)
    for tell in told:
        tell(running)
