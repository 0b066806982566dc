"""The program without the seconds that its imports take: copies of a process that has imported what is heavy.

A copy has its own arguments, environment, folder, streams and signals, and ends as any process does. The command line's
own modules and the plugins are imported by each copy, as its environment wants them.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

__all__ = ["Copy", "copies", "same_imports"]

HEAVY = (
    "torch",
    "numba",
    "safetensors.torch",
    "huggingface_hub",
    "gguf",
    "qformats",
    "qformats.kernels.cpu",
    "qformats.exporting",
)
"""What an export imports, and what looks at nothing that differs between tests."""

_FREE = (
    "AWS_",
    "PYTEST_",
    "QFORMATS_API_KEY",
    "QFORMATS_SCRATCH",
    "RAY_CLIENT_MODE",  # Ray sets it itself
    "TERM",
    "TORCHINDUCTOR_CACHE_DIR",  # so does torch
    "XDG_STATE_HOME",
)
"""Beginnings of variables that are read when a command runs, and by no import."""

_ENVIRONMENT = dict(os.environ)
"""Before any test has changed it."""

_SCREEN = ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "TERM")
"""Variables that the program gets from tests only."""

_START = (
    "import sys; sys.path.insert(0, {tests!r}); from cli import warm; del sys.path[0]; warm.copies(int(sys.argv[1])); "
    "from qformats.cli import main; main()"
)
"""From `copies` only the copies come back, and go on like any other start of the program."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def same_imports(environment: Mapping[str, str]) -> bool:
    """Whether imports give the same with these variables as with those that this process began with."""
    changed = {
        name
        for name in environment.keys() | _ENVIRONMENT.keys()
        if environment.get(name) != _ENVIRONMENT.get(name)
    }
    return all(name.startswith(_FREE) or (name in _SCREEN and name not in environment) for name in changed)


class _Original:
    """The process that is copied, and the way to it."""

    def __init__(self) -> None:
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        code = _START.format(tests=str(Path(__file__).parents[1]))
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, str(theirs.fileno())],
                env={name: value for name, value in _ENVIRONMENT.items() if name not in _SCREEN},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        atexit.register(self.end)

    def end(self) -> None:
        """It ends with this process."""
        self.channel.close()
        self.process.wait()

    def copy(self, asked: dict[str, Any], handles: Sequence[int]) -> int:
        """Make a copy; gives its process."""
        socket.send_fds(self.channel, [json.dumps(asked).encode()], handles)
        told = self.channel.recv(64)
        if not told:
            raise RuntimeError(f"the process that is copied has ended: {self.process.wait()}")
        return int(told)


_original: _Original | None = None


class Copy:
    """A copy that runs the program, with those methods of `subprocess.Popen` that tests use.

    Parameters
    ----------
    args : sequence of str
        Arguments of the program.
    env : mapping
        All of its environment.
    cwd : Path, optional
        Its folder.
    """

    def __init__(
        self,
        args: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path | None = None,
    ) -> None:
        global _original
        if _original is None:
            _original = _Original()
        self.args = ["qformats", *args]
        self.returncode: int | None = None
        nothing = os.open(os.devnull, os.O_RDONLY)
        (out, out_end), (err, err_end), (self._ended, told) = os.pipe(), os.pipe(), os.pipe()
        self.stdout, self.stderr = open(out, encoding="utf-8"), open(err, encoding="utf-8")
        asked = {"args": self.args, "environment": dict(env), "folder": str(cwd or Path.cwd())}
        theirs = (nothing, out_end, err_end, told)
        try:
            self.pid = _original.copy(asked, theirs)
        finally:
            for handle in theirs:
                os.close(handle)

    def poll(self) -> int | None:
        """Exit code, if it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Exit code, as `subprocess` gives it, once it has ended."""
        if self.returncode is None:
            if not select.select([self._ended], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            told = os.read(self._ended, 64)
            os.close(self._ended)
            if not told:
                raise RuntimeError("the process that is copied has ended before its copy")
            self.returncode = int(told)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, if it has not ended."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Read all that it writes, and wait for its end."""
        read: dict[IO[str], str] = {}
        # Both at a time: it may fill one pipe while the other is read.
        readers = [
            threading.Thread(target=lambda stream=stream: read.update({stream: stream.read()}), daemon=True)
            for stream in (self.stdout, self.stderr)
        ]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        out, err = read[self.stdout], read[self.stderr]
        self.stdout.close()
        self.stderr.close()
        return out, err

    def __enter__(self) -> Copy:
        return self

    def __exit__(self, *_: object) -> None:
        self.stdout.close()
        self.stderr.close()
        self.wait()


def copies(number: int) -> None:
    """Import what is heavy and make copies as they are asked for; returns in each of them, and never here.

    Parameters
    ----------
    number : int
        Descriptor of the socket on which they are asked for.
    """
    channel = socket.socket(fileno=number)
    for name in HEAVY:
        importlib.import_module(name)
    # What is imported stays. Copies do not look at it again, nor tidy it up at their end: that would copy most of the
    # memory and take longer than all else.
    gc.collect()
    gc.freeze()
    # A copy has none of these threads.
    assert len(os.listdir("/proc/self/task")) == 1, threading.enumerate()
    # Ctrl-C in a terminal reaches all that began there; this process ends with the one that tests.
    for signal_number in _SIGNALS:
        signal.signal(signal_number, signal.SIG_IGN)
    running: dict[int, tuple[int, int]] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(channel, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd in running:
                    selector.unregister(key.fd)
                    _tell(key.fd, *running.pop(key.fd))
                    continue
                message, handles, _, _ = socket.recv_fds(channel, 1 << 20, 4)
                if not message:
                    os._exit(0)
                # Until it listens, signals to the copy wait.
                signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
                process = os.fork()
                if process == 0:
                    for ended, (_, told) in running.items():
                        os.close(ended)
                        os.close(told)
                    selector.close()
                    channel.close()
                    _become(json.loads(message), handles)
                    return
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
                for handle in handles[:3]:
                    os.close(handle)
                ended = os.pidfd_open(process)
                running[ended] = (process, handles[3])
                selector.register(ended, selectors.EVENT_READ)
                channel.send(str(process).encode())


def _tell(ended: int, process: int, told: int) -> None:
    """How a copy has ended."""
    os.close(ended)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    # Nobody may want to know.
    with contextlib.suppress(BrokenPipeError):
        os.write(told, str(code).encode())
    os.close(told)


def _become(asked: dict[str, Any], handles: list[int]) -> None:
    """Take over what a new process would have been given."""
    os.close(handles[3])
    for stream, handle in enumerate(handles[:3]):
        os.dup2(handle, stream)
        os.close(handle)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    sys.argv = asked["args"]
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.__stdout__ = _writing(1, errors="strict", lines=os.isatty(1))
    sys.stderr = sys.__stderr__ = _writing(2, errors="backslashreplace", lines=True)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _writing(handle: int, *, errors: str, lines: bool) -> IO[str]:
    """A stream as Python makes it when it begins."""
    raw = open(handle, "wb", buffering=0 if os.environ.get("PYTHONUNBUFFERED") else -1, closefd=False)
    through = isinstance(raw, io.RawIOBase)
    return io.TextIOWrapper(raw, encoding="utf-8", errors=errors, line_buffering=lines, write_through=through)
