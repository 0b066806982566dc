"""Short stretches of work that Ctrl-C must not cut in two."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["uninterrupted"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def uninterrupted(*, late: bool = False) -> Iterator[None]:
    """Hold SIGINT and SIGTERM back while a result is put in place or removed.

    Only the main thread receives signals; elsewhere this does nothing.

    Parameters
    ----------
    late : bool
        Deliver afterwards what was held back. Without it only a signal that ends the process is delivered: one that
        would raise ``KeyboardInterrupt`` comes too late to change anything and is dropped.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in _SIGNALS:
        signal.signal(number, lambda number, _frame: held.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for missed in map(signal.Signals, dict.fromkeys(held)):
            if late or before[missed] is signal.SIG_DFL:
                signal.raise_signal(missed)
