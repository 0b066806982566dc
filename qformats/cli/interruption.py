"""Which signal has interrupted a run, for its exit code."""

from __future__ import annotations

import signal

__all__ = ["interrupted_code", "received"]

received: list[int] = []
"""Signals that have come since the program began."""


def interrupted_code() -> int:
    """Exit code of an interrupted run, as shells have it: 128 and the number of the first signal that came."""
    return 128 + (received[0] if received else signal.SIGINT)
