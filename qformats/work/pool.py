"""The bounded pool: pieces of a long job on several threads, with a limited number in flight."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from qformats.errors import ConfigError
from qformats.work.signals import interruptible

__all__ = ["bounded", "threads", "torch_threads"]

Piece = TypeVar("Piece")
Result = TypeVar("Result")

_PATIENCE = 0.1
"""Seconds between two checks for signals."""


def threads(workers: int | None) -> int:
    """Threads to use; all cores by default.

    Raises
    ------
    ConfigError
        If the user asks for less than one.
    """
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if not isinstance(workers, int) or workers < 1:
        raise ConfigError("workers", workers, "1 or more")
    return workers


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch computes with so many threads in the block; the sums of its products depend on their number."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def bounded(
    work: Callable[[Piece], Result],
    pieces: Iterable[Piece],
    workers: int,
    *,
    weight: Callable[[Piece], int],
    limit: int,
    ahead: int = 2,
    ordered: bool = False,
) -> Iterator[Iterator[tuple[Piece, Result]]]:
    """Work on pieces, and give their results as they come.

    Signals are held back and delivered between two pieces, several times a second (see
    :func:`~qformats.work.signals.interruptible`). If the block ends with an error, pieces that have not begun are
    dropped, and the others are waited for.

    Parameters
    ----------
    work : callable
        What to do with a piece; called in other threads, where torch has one thread each.
    pieces : iterable
        In the order in which they are begun.
    workers : int
        Threads.
    weight : callable
        Weight of a piece, in units of `limit`.
    limit : int
        Most weight in flight; a piece that is heavier by itself is worked on alone.
    ahead : int
        Most pieces in flight, as a multiple of the threads.
    ordered : bool
        Whether results come in the order of the pieces, so that sums do not depend on which thread was faster.

    Yields
    ------
    iterator of (piece, result)
        Raises what `work` raised.
    """
    with (
        # One thread per piece is the parallelism; torch's own threads would only get in its way.
        torch_threads(1),
        interruptible() as deliver,
        ThreadPoolExecutor(workers, "qformats") as pool,
    ):
        results = _results(work, pieces, pool, weight, limit, ahead * workers, ordered, deliver)
        try:
            yield results
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            results.close()


def _results(
    work: Callable[[Piece], Result],
    pieces: Iterable[Piece],
    pool: ThreadPoolExecutor,
    weight: Callable[[Piece], int],
    limit: int,
    most: int,
    ordered: bool,
    deliver: Callable[[], None],
) -> Generator[tuple[Piece, Result], None, None]:
    queue = deque(pieces)
    waiting: dict[Future[Result], Piece] = {}
    weights = 0
    while queue or waiting:
        deliver()
        while queue and len(waiting) < most:
            more = weight(queue[0])
            if waiting and weights + more > limit:
                break
            piece = queue.popleft()
            waiting[pool.submit(work, piece)] = piece
            weights += more
        first = [next(iter(waiting))] if ordered else list(waiting)
        done, _ = wait(first, _PATIENCE, FIRST_COMPLETED)
        for future in done:
            piece = waiting.pop(future)
            weights -= weight(piece)
            yield piece, future.result()
