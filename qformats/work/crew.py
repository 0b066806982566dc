"""Threads that wait for short work: a call costs microseconds, where one to a pool costs tens of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

__all__ = ["share"]

Share = tuple[Callable[[int, int], None], int, int, "SimpleQueue[BaseException | None]"]

_waiting: list[SimpleQueue[Share]] = []
"""What each thread waits at."""
_lock = threading.Lock()


def _forget() -> None:
    """Threads do not follow into a process that is forked."""
    global _lock
    _waiting.clear()
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget)


def _serve(queue: SimpleQueue[Share]) -> None:
    while True:
        work, start, stop, done = queue.get()
        try:
            work(start, stop)
            done.put(None)
        except BaseException as error:
            done.put(error)
        # What it worked on is not kept until the next call.
        del work, done


def share(work: Callable[[int, int], None], count: int, threads: int) -> None:
    """Have several threads do a piece each; the calling one does the first.

    Parameters
    ----------
    work : callable
        ``work(start, stop)`` does the elements from `start` up to `stop`, and releases the GIL meanwhile.
    count : int
        Elements.
    threads : int
        At least 1.

    Examples
    --------
    >>> from qformats.work.crew import share
    >>> done = []
    >>> share(lambda start, stop: done.append((start, stop)), 10, 2)
    >>> sorted(done)
    [(0, 5), (5, 10)]
    """
    with _lock:
        while len(_waiting) < threads - 1:
            _waiting.append(SimpleQueue())
            threading.Thread(
                target=_serve, args=(_waiting[-1],), name=f"qformats-{len(_waiting)}", daemon=True
            ).start()
    done: SimpleQueue[BaseException | None] = SimpleQueue()
    edges = [count * number // threads for number in range(threads + 1)]
    for queue, start, stop in zip(_waiting, edges[1:], edges[2:], strict=False):
        queue.put((work, start, stop, done))
    failed: BaseException | None = None
    try:
        work(0, edges[1])
    finally:
        for _ in range(threads - 1):
            failed = done.get() or failed
    if failed is not None:
        raise failed
