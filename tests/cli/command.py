"""The program as users run it: in a process of its own, in a terminal, or (for the many small cases) in this one."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import warnings
from dataclasses import dataclass
from pathlib import Path

from cli.warm import Copy, same_imports

__all__ = ["PROGRAM", "Result", "call", "ended", "environment", "run", "run_in_terminal", "start"]

PROGRAM = [
    sys.executable,
    "-c",
    "import sys; sys.argv[0] = 'qformats'; from qformats.cli import main; main()",
]


@dataclass(frozen=True)
class Result:
    """Exit code and output."""

    code: int
    out: str
    err: str


def environment(**changes: str) -> dict[str, str]:
    """Environment of the tests without what would change the program's output."""
    kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "TERM")}
    return kept | changes


def start(
    *args: str | Path, cwd: Path | None = None, fresh: bool = False, **changes: str
) -> subprocess.Popen[str] | Copy:
    """Start the program without waiting.

    It is a copy of a process that has imported what is heavy, which saves seconds; a new one if `fresh`, or if a
    variable of the environment may change what is imported. Tests of how the program starts and what it imports want
    that.
    """
    environ = environment(**changes)
    if not fresh and same_imports(environ):
        return Copy([*map(str, args)], env=environ, cwd=cwd)
    return subprocess.Popen(
        [*PROGRAM, *map(str, args)],
        env=environ,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str] | Copy, *signals: int, timeout: float = 60) -> tuple[int, str]:
    """Send signals to a program, and wait for its end; gives the exit code and standard error."""
    with process:
        for number in signals:
            process.send_signal(number)
        try:
            _, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            # Otherwise it would be waited for.
            process.kill()
            raise
    assert process.returncode is not None
    return process.returncode, err


def run(
    *args: str | Path, timeout: float = 60, cwd: Path | None = None, fresh: bool = False, **changes: str
) -> Result:
    """Run the program to its end, in a process of its own; see `start`."""
    with start(*args, cwd=cwd, fresh=fresh, **changes) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode is not None
    return Result(process.returncode, out, err)


def run_in_terminal(*args: str | Path, columns: int = 80, **changes: str) -> tuple[int, str]:
    """Run the program in a terminal; gives the exit code and everything that the terminal received."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    process = subprocess.Popen(
        [*PROGRAM, *map(str, args)],
        env=environment(TERM="xterm-256color", **changes),
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    received = b""
    while True:
        try:
            part = os.read(master, 1 << 16)
        except OSError:
            break
        if not part:
            break
        received += part
    os.close(master)
    return process.wait(60), received.decode().replace("\r\n", "\n")


def call(capsys, *args: str | Path) -> Result:
    """Run the program's entry point in this process: the same code without a second to start it."""
    from qformats.cli import main

    argv, show = sys.argv, warnings.showwarning
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    sys.argv = ["qformats", *map(str, args)]
    code = 0
    try:
        capsys.readouterr()
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv, warnings.showwarning = argv, show
        for number, handler in handlers.items():
            signal.signal(number, handler)
    captured = capsys.readouterr()
    return Result(code, captured.out, captured.err)


def without_escapes(text: str) -> str:
    """Text of a terminal without colours and cursor movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
