"""What must happen anew each time, although the operations around it were captured into graphs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

__all__ = ["outside", "taking"]

_now = threading.local()


def outside(operation: Callable[[], object]) -> None:
    """Do something that a graph may not hold: now, or in each replay while a step is being captured.

    An exchange between processes is such a thing. A graph that holds one of NCCL's keeps its communicator from being
    destroyed: a program whose model is still there waits at its end for ever (torch 2.11, 2026-11-30).

    Parameters
    ----------
    operation : callable
        Reads and writes tensors that it knows; their memory is the same in each replay.

    Examples
    --------
    >>> from qformats.work.outside import outside
    >>> outside(lambda: print("done"))
    done
    """
    take: Callable[[Callable[[], object]], None] | None = getattr(_now, "take", None)
    if take is None:
        operation()
    else:
        take(operation)


@contextlib.contextmanager
def taking(take: Callable[[Callable[[], object]], None]) -> Iterator[None]:
    """Hand such operations of this thread to somebody else while the block runs.

    Parameters
    ----------
    take : callable
        Receives each operation, and sees that it is done when it is due.

    Examples
    --------
    >>> from qformats.work.outside import outside, taking
    >>> later = []
    >>> with taking(later.append):
    ...     outside(lambda: print("done"))
    >>> later[0]()
    done
    """
    _now.take = take
    try:
        yield
    finally:
        del _now.take
