"""What one execution may do: end in a result or our own error, soon, in little memory, and inside its folder.

Python tells every opening of a file, every change of a name and every new process to an audit hook. Hooks cannot be
removed, so there is one for the process, which looks only while something is watched.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qformats.errors import PluginError, QFormatsError

__all__ = ["CPU_SECONDS", "MEMORY", "Fault", "Place", "Watch", "sprung"]

CPU_SECONDS = 1.0
"""Processor time that a small file may take."""
MEMORY = 256 << 20
"""Bytes that it may take beside what the process has."""
_PATIENCE = 20.0
"""Processor time of a second reading."""
_SLACK = 128 << 20
"""Address space for code that is loaded late."""
_RENEWED = 4096
"""Executions after which the limit of address space follows the process."""
_FORBIDDEN = {
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.spawn"),
    *("pty.spawn", "socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "webbrowser.open"),
}
_WRITING = {
    *(
        "os.remove",
        "os.rmdir",
        "os.mkdir",
        "os.truncate",
        "os.chmod",
        "os.chown",
        "os.utime",
        "shutil.rmtree",
    ),
    *("os.rename", "os.link", "os.symlink", "shutil.copyfile", "shutil.move"),
}
_LISTING = {"os.listdir", "os.scandir"}
_CACHE = "/__pycache__/"
_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class _Late(BaseException):
    """Not an Exception, so that no reader takes it for a fault of its file."""


@dataclass(frozen=True)
class Fault:
    """What should not have come of an input.

    Attributes
    ----------
    kind : str
        One word.
    place : str
        The last line of ours that it came through, which tells faults apart.
    text : str
        All that is known.
    """

    kind: str
    place: str
    text: str


@dataclass(frozen=True)
class Place:
    """Folders of one process: what is read, and where it may write.

    Attributes
    ----------
    root : Path
        In memory where there is such a file system. A file `secret` lies in it that nothing may read.
    """

    root: Path

    @property
    def inside(self) -> Path:
        """The folder that the input is put into."""
        return self.root / "home" / "model"

    @property
    def free(self) -> Path:
        """Where temporary files and outputs may be made."""
        return self.root / "free"

    def make(self) -> None:
        """Make them."""
        for folder in (self.inside, self.free):
            folder.mkdir(parents=True, exist_ok=True)
        (self.root / "secret").write_text("{}")
        (self.root / "home" / "secret").write_text("{}")


def sprung(*_: object, **__: object) -> str:
    """What a pickle must not call; see `mutators.pickles`."""
    if _watched is not None:
        _watched.tell("code", "a pickle called a function")
    return "sprung"


_watched: Watch | None = None
_hooked = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched is not None:
        _watched.event(event, arguments)


class Watch:
    """Runs readers under these rules.

    Parameters
    ----------
    place : Place
        Its folders.
    cpu : float
        Seconds of processor time; more under instruments that slow Python down.
    """

    def __init__(self, place: Place, cpu: float = CPU_SECONDS) -> None:
        global _hooked
        self.place, self._cpu = place, cpu
        self._readable = tuple(
            f"{os.path.abspath(each)}/"
            for each in (
                *(place.inside, place.free, sys.prefix, sys.base_prefix, sys.exec_prefix),
                *("/proc/self", "/usr/lib", "/sys/devices/system", Path(__file__).parents[2]),
                *(os.path.dirname(os.path.realpath(sys.executable)), *filter(os.path.isdir, sys.path)),
            )
        )
        self._writable = f"{os.path.abspath(place.free)}/"
        self._own = os.path.abspath(place.free), os.path.abspath(place.inside)
        self._told: list[Fault] = []
        self._runs = 0
        self._peak = 0
        self._loading = False
        if not _hooked:
            sys.addaudithook(_hook)
            _hooked = True

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Quiet and limited surroundings for many executions."""
        before = tempfile.tempdir, signal.getsignal(signal.SIGPROF), resource.getrlimit(resource.RLIMIT_AS)
        tempfile.tempdir = str(self.place.free)
        signal.signal(signal.SIGPROF, self._late)
        self._peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self._runs = 0
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            tempfile.tempdir = before[0]
            signal.signal(signal.SIGPROF, before[1])
            resource.setrlimit(resource.RLIMIT_AS, before[2])

    def _late(self, _number: int, frame: Any) -> None:
        if _watched is not self:
            return
        where = "".join(traceback.format_stack(frame, 12))
        self._told.append(Fault("slow", _line(traceback.extract_stack(frame)), where))
        raise _Late

    def tell(self, kind: str, text: str) -> None:
        """Note a fault that happened inside."""
        stack = traceback.extract_stack()
        self._told.append(
            Fault(kind, _line(stack), text + "\n" + "".join(traceback.format_list(stack[-14:])))
        )

    def event(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Judge what Python tells the hook."""
        if event == "import":
            self._load()
        elif event == "open":
            path, mode, flags = (*arguments, None, None, None)[:3]
            if isinstance(path, int):
                return
            writes = (
                bool(flags & _TO_WRITE) if isinstance(flags, int) else bool(set(mode or "") & set("wax+"))
            )
            self._look(path, event, writes=writes)
        elif event in _FORBIDDEN:
            self.tell("code", f"{event} {arguments!r}"[:400])
        elif event in _WRITING:
            two = event in ("os.rename", "os.link", "os.symlink", "shutil.move")
            beside = arguments[-1] if event in ("os.remove", "os.rmdir", "os.mkdir") else -1
            for each in arguments[1 if event == "os.symlink" else 0 : 2 if two else 1]:
                if isinstance(beside, int) and beside >= 0:
                    each = os.path.join(os.readlink(f"/proc/self/fd/{beside}"), os.fsdecode(each))
                self._look(each, event, writes=True)
        elif event in _LISTING and arguments and arguments[0] is not None:
            self._look(arguments[0], event, writes=False)

    def _look(self, path: object, event: str, *, writes: bool) -> None:
        if isinstance(path, int) or path is None:
            return
        named = os.path.abspath(os.fsdecode(path))  # type: ignore[arg-type]
        within = f"{named}/"
        if named in self._own or named == os.devnull or within.startswith(self._writable):
            return
        # Compiled kernels are kept beside the program's own code.
        cached = _CACHE in within and not within.startswith(os.fspath(self.place.root))
        readable = within.startswith(self._readable) or named in ("/dev/urandom", "/")
        if not cached and (writes or not readable):
            self.tell("outside", f"{event} {named!r}, to {'write' if writes else 'read'}")

    def _load(self) -> None:
        """Code is being loaded, which takes what it takes; the input is read again afterwards."""
        if not self._loading:
            self._loading = True
            signal.setitimer(signal.ITIMER_PROF, _PATIENCE)
            resource.setrlimit(
                resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_AS)[1])
            )

    def run(self, read: Callable[[Path], object]) -> Fault | bool:
        """Read what lies in the folder.

        What loads code is read again; so is what takes long or much memory, since a kernel may have been compiled.

        Returns
        -------
        Fault or bool
            True for a result, False for one of our own errors.
        """
        outcome = self._once(read, self._cpu)
        while self._loading:
            outcome = self._once(read, self._cpu)
        if isinstance(outcome, Fault) and outcome.kind in ("slow", "memory"):
            again = self._once(read, _PATIENCE)
            return again if isinstance(again, Fault) else self._once(read, self._cpu)
        return outcome

    def _once(self, read: Callable[[Path], object], cpu: float) -> Fault | bool:
        global _watched
        if self._loading or self._runs % _RENEWED == 0:
            self._limit()
        self._loading = False
        self._runs += 1
        self._told.clear()
        outcome: Fault | bool = True
        began = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, cpu)
        _watched = self
        try:
            try:
                read(self.place.inside)
            finally:
                _watched = None
                signal.setitimer(signal.ITIMER_PROF, 0)
        except PluginError as error:
            outcome = _fault("plugin", error)
        except QFormatsError:
            outcome = False
        except _Late:
            pass
        except RecursionError as error:
            outcome = _fault("recursion", error)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # Panics of compiled Rust are no Exception.
            outcome = _fault("exception", error)
        took, before = time.process_time() - began, self._peak
        self._peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if self._told:
            return self._told[0]
        if not isinstance(outcome, Fault) and not self._loading:
            if took > cpu:
                return Fault("slow", "in compiled code", f"{took:.2f} s of processor time")
            if (self._peak - before) << 10 > MEMORY:
                return Fault("memory", "unknown", f"{self._peak - before:,} KiB")
        return outcome

    def _limit(self) -> None:
        """Let a request for more memory fail, so that it shows where it is made."""
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[0])
        wanted = pages * resource.getpagesize() + MEMORY + _SLACK
        resource.setrlimit(resource.RLIMIT_AS, (wanted, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _line(frames: traceback.StackSummary | list[traceback.FrameSummary]) -> str:
    own = [f for f in frames if "/qformats" in f.filename and "/tests/" not in f.filename]
    last = (own or frames)[-1]
    return f"{last.filename.rpartition('/')[2]}:{last.lineno}"


def _fault(kind: str, error: BaseException) -> Fault:
    text = "".join(traceback.format_exception(error))
    while error.__cause__ is not None and isinstance(error, PluginError):
        error = error.__cause__
    frames = traceback.extract_tb(error.__traceback__)
    place = _line(frames) if frames else "nowhere"
    return Fault(kind, f"{type(error).__name__} {place}", text)
