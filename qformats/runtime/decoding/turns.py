"""Who runs a model's own code, and who replaces parts of it: never both at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

__all__ = ["Turns"]


class Turns:
    """Turns of threads with one model.

    Examples
    --------
    >>> from qformats.runtime.decoding.turns import Turns
    >>> turns = Turns()
    >>> with turns.alone() as alone:
    ...     alone
    True
    >>> with turns.together(), turns.alone() as alone:
    ...     alone
    False
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._alone = False

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Run the model's own code, as others may; waits while it is being changed."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """Change the model's code, if nobody runs it; the value tells. Does not wait."""
        with self._changed:
            free = not self._running and not self._alone
            self._alone = self._alone or free
        try:
            yield free
        finally:
            if free:
                with self._changed:
                    self._alone = False
                    self._changed.notify_all()
