"""The server as users run it: in a process of its own."""

from __future__ import annotations

import re
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli.command import PROGRAM, environment

__all__ = ["resident", "served"]


@contextmanager
def served(*args: str | Path, **changes: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start the server on a free port; gives its address, and the process."""
    process = subprocess.Popen(
        [*PROGRAM, "serve", *map(str, args), "--port", "0", "--device", "cpu"],
        env=environment(**changes),
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    try:
        assert process.stderr is not None
        told, end = "", time.monotonic() + 120
        while not (found := re.search(r"serving .* at (http://\S+), a page .*\n", told)):
            ready, _, _ = select.select([process.stderr], [], [], max(0, end - time.monotonic()))
            line = process.stderr.readline() if ready else ""
            assert line, f"the server did not start: {told}"
            told += line
        yield found[1], process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=60)


def resident(process: subprocess.Popen[str]) -> int:
    """Bytes of memory that a process holds."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024
