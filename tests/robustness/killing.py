"""Real kills, SIGKILL, of a copy of this process: at one call of the file system, or after some time.

A copy has everything imported already, so that hundreds of kills take as long as ten new processes would.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import qformats.exporting.journal
import qformats.work.exchanging

__all__ = ["CALLS", "ended"]

CALLS: tuple[tuple[Any, str], ...] = (
    *((Path, name) for name in ("rename", "replace", "mkdir", "unlink", "rmdir")),
    *((os, name) for name in ("unlink", "rmdir", "fsync", "write", "pwrite", "close", "ftruncate")),
    (qformats.exporting.journal, "exchange"),
)
"""What changes files: between any two of them a kill may fall."""


def _killing(function: Callable[..., Any], counted: list[int], step: int) -> Callable[..., Any]:
    def called(*arguments: Any, **named: Any) -> Any:
        counted[0] += 1
        if counted[0] == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)

    return called


def ended(
    act: Callable[[], object],
    *,
    step: int = 0,
    after: float | None = None,
    number: int = signal.SIGKILL,
    log: Path,
) -> int:
    """Run something in a copy of this process; gives how it ended, as `subprocess` does.

    Parameters
    ----------
    act : callable
        What is done there.
    step : int
        Kill it at this call of `CALLS`, counted from 1; 0 for never. If it ends before, the last line of the log tells
        how many there were.
    after : float, optional
        Send it a signal after so many seconds.
    number : int
        The signal.
    log : Path
        Receives what it prints.
    """
    with warnings.catch_warnings():
        # From 3.12 on Python warns of copies of processes with threads; those of libraries here wait for work.
        warnings.simplefilter("ignore", DeprecationWarning)
        process = os.fork()
    if process == 0:
        _child(act, step, log)
    if after is not None:
        deadline = time.monotonic() + after
        while time.monotonic() < deadline:
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.001)
        os.kill(process, number)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _child(act: Callable[[], object], step: int, log: Path) -> None:
    """Does not return."""
    code = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for stream in (1, 2):
            os.dup2(handle, stream)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(stream), "w") for stream in (1, 2))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        counted = [0]
        for home, name in CALLS if step else ():
            setattr(home, name, _killing(getattr(home, name), counted, step))
        act()
        if step:
            print(counted[0])
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
