"""Files that become shorter while they are mapped: the kernel then ends the process with SIGBUS, without a word."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["on_shrunk_file"]

_WITH_DETAILS, _ONCE = 0x4, 0x80000000
"""SA_SIGINFO and SA_RESETHAND of Linux."""
_MASK = 128
"""Bytes of a set of signals."""


class _Details(ctypes.Structure):
    """The beginning of siginfo_t of a fault."""

    _fields_ = (
        ("number", ctypes.c_int),
        ("error", ctypes.c_int),
        ("code", ctypes.c_int),
        ("address", ctypes.c_void_p),
    )


_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.POINTER(_Details), ctypes.c_void_p)


class _Action(ctypes.Structure):
    """struct sigaction of glibc and musl."""

    _fields_ = (
        ("handler", _Handler),
        ("mask", ctypes.c_char * _MASK),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


_installed: list[Any] = []
"""What the system calls must outlive the call that gave it."""


def on_shrunk_file(code: int, tell: Callable[[str], None]) -> None:
    """Say which file became shorter while it was read, and end the process; on Linux, elsewhere nothing is done.

    For programs, not for libraries: it replaces what the process does on SIGBUS.

    Parameters
    ----------
    code : int
        Exit code of the process.
    tell : callable
        Is given one sentence.
    """
    if sys.platform != "linux":
        return
    try:
        install = ctypes.CDLL(None, use_errno=True).sigaction
    except (AttributeError, OSError):
        # Another C library: the process ends as it would have.
        return

    def fault(_number: int, details: Any, _context: int | None) -> None:
        # The access that failed would be tried again: nothing may return from here.
        try:
            file = _mapped_at(details.contents.address or 0)
            tell(f"{file}: became shorter while it was read. Write it again, then repeat the command")
            sys.stderr.flush()
        finally:
            os._exit(code)

    handler = _Handler(fault)
    _installed.append(handler)
    action = _Action(handler, b"", ctypes.c_int(_WITH_DETAILS | _ONCE - (1 << 32)).value, None)
    install(signal.SIGBUS, ctypes.byref(action), None)


def _mapped_at(address: int) -> str:
    """Path of the file that lies at an address."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, *_, path = [*line.split(maxsplit=5), ""][:6]
            start, stop = (int(each, 16) for each in span.split("-"))
            if start <= address < stop:
                return path.strip().removesuffix(" (deleted)") or "a file"
    return "a file"
