"""The command line. Importing this package is cheap; each command imports what it needs when it runs."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

from qformats.cli.interruption import interrupted_code, received

__all__ = ["main"]

_AGAIN = 0.05
"""Seconds until a signal that came during an import is tried again."""


def main() -> None:
    """Entry point of the ``qformats`` program."""
    # A program that was started to ignore Ctrl-C (nohup, a shell's background job) goes on ignoring it.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    received.clear()
    try:
        from qformats.cli.app import run

        run()
    except KeyboardInterrupt:
        # A second Ctrl-C, while the first one was handled.
        print("qformats: interrupted", file=sys.stderr)
        sys.exit(interrupted_code())
    finally:
        # All is said and done. Python would put the system's handler back while it shuts down, and a Ctrl-C that comes
        # then would make a success look like a killed program.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise ``KeyboardInterrupt``, but never in the middle of an import.

    torch and numpy swallow it there and go on half imported, which ends in errors that have nothing to do with the
    cause.
    """
    received.append(number)
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            later = threading.Timer(_AGAIN, os.kill, (os.getpid(), number))
            later.daemon = True
            later.start()
            return
        frame = frame.f_back
    raise KeyboardInterrupt
