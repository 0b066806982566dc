"""Work that Ctrl-C may interrupt only at chosen points, or not at all."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["interruptible", "uninterrupted"]

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


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Hold SIGINT and SIGTERM back, and deliver them when the work asks for them.

    ``KeyboardInterrupt`` may be raised between any two instructions, even while a pool of threads holds its locks; then
    the pool never ends. Work that drives a pool instead calls the function given here between its steps.

    Yields
    ------
    callable
        Delivers signals that have arrived since; it returns, or raises what the handler raises. At the end the rest is
        delivered, unless an error is already on its way.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    held: list[signal.Signals] = []
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def deliver() -> None:
        while held:
            number = held.pop()
            handler = before[number]
            if callable(handler):
                handler(number, None)
            elif handler is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)

    for number in _SIGNALS:
        signal.signal(number, lambda number, _frame: held.append(signal.Signals(number)))
    try:
        yield deliver
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    deliver()
