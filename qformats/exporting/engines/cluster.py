"""The engine ``ray``: slices become tasks of a Ray cluster, whose nodes share a file system."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qformats.errors import BackendUnavailableError, ConfigError, spelled
from qformats.exporting.engines import remote
from qformats.exporting.engines.engine import WorkersLost
from qformats.exporting.engines.parts import MOST_BYTES, parts_of
from qformats.exporting.engines.rebuilt import Told
from qformats.exporting.fill import Output, OutputFiles, Slice
from qformats.exporting.journal import Span, Written
from qformats.exporting.source_digest import names_of
from qformats.interfaces.checkpoint import Checkpoint
from qformats.work.checksums import PIECE, joined
from qformats.work.progress import Progress, Silent
from qformats.work.signals import interruptible

__all__ = ["Cluster", "connected"]

_ATTEMPTS = 4
"""Times that a part is tried before the export ends: machines come and go, but something is wrong with such a part."""
_PATIENCE = 0.1
"""Seconds between two checks for signals."""
_GOODBYE = 10.0
"""Seconds that cancelled tasks have to end, so that they no longer write where everything is removed."""
_STORE = 80 << 20
"""Bytes of the object store of a cluster that is started here: results are small."""
_THREADS = 4
"""Threads of a task, at least, where nodes have so many: each process takes memory for what it imports."""


@dataclass(frozen=True, eq=False)
class _Task:
    """A function of :mod:`~qformats.exporting.engines.remote`, what it is called with, and what that is of."""

    work: Callable[..., remote.Outcome]
    args: tuple[Any, ...]
    of: Any


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Cluster]:
    """The engine, while this process belongs to a cluster.

    Parameters
    ----------
    address : str, optional
        ``auto`` for the cluster that this machine belongs to, or of its head; ``local`` for one that is started on this
        machine alone. By default the former if there is one, and otherwise the latter. A process that has called
        ``ray.init`` keeps its own.

    Raises
    ------
    BackendUnavailableError
        If Ray is not installed, or the cluster cannot be reached.
    """
    # A package that is started here is not asked whether it may report home.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        hint = "Install it on every node: pip install 'qformats[ray]'"
        raise BackendUnavailableError("ray", "the package is not installed", hint) from error
    if ray.is_initialized():
        yield Cluster(ray)
        return
    with _handlers():
        _connect(ray, address)
    try:
        yield Cluster(ray)
    finally:
        with _handlers():
            ray.shutdown()


@contextlib.contextmanager
def _handlers() -> Iterator[None]:
    """Ray takes SIGTERM for itself; here it ends an export as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _connect(ray: Any, address: str | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    alone = {"include_dashboard": False, "object_store_memory": _STORE}
    try:
        try:
            ray.init(address=address or "auto", **quiet, **(alone if address == "local" else {}))
        except ConnectionError:
            if address is not None:
                raise
            ray.init(address="local", **quiet, **alone)
    except Exception as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        where = f"no cluster at {address!r}" if address else "no cluster could be started"
        hint = (
            "Start one (ray start --head; ray start --address HOST:6379 on the others), and give its "
            + spelled("--address HOST:6379", "address='HOST:6379'")
        )
        raise BackendUnavailableError("ray", f"{where} ({reason})", hint) from error


class Cluster:
    """Converts in tasks of a Ray cluster; see :class:`~qformats.exporting.engines.engine.Engine`.

    Parameters
    ----------
    ray : module
        Connected.
    """

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._progress: Progress = Silent()

    @contextlib.contextmanager
    def written(
        self, pending: Sequence[tuple[Output, Slice]], workers: int | None, progress: Progress
    ) -> Iterator[Iterator[tuple[tuple[Output, Slice], Written]]]:
        """Give each output file to one task at a time; a part whose machine is lost goes to another one."""
        self._progress = progress
        outputs = {id(output): output for output, _ in pending}
        told = {key: Told.of(output.plan) for key, output in outputs.items()}
        queues = parts_of(pending)
        count = self._threads(workers, len(queues)) if queues else 1
        tasks = [
            deque(
                _Task(
                    remote.write,
                    (
                        told[id(part.output)],
                        part.output.journal.files.absolute(),
                        part.output.journal.opening,
                        part.files,
                        [piece.index for piece in part.slices],
                        count,
                    ),
                    part.output,
                )
                for part in queue
            )
            for queue in queues
        ]

        def each(results: Iterator[tuple[_Task, Any]]) -> Iterator[tuple[tuple[Output, Slice], Written]]:
            for task, done in results:
                for index, written in done:
                    yield (task.of, task.of.slices[index]), written

        with contextlib.ExitStack() as lent:
            for output in outputs.values():
                lent.enter_context(output.files.lent())
            with self._each(tasks, count) as results:
                yield each(results)

    @contextlib.contextmanager
    def source(self, source: Checkpoint, order: Sequence[Path]) -> Iterator[_Source]:
        """Let the nodes read the files when all is converted: together they are faster than one."""
        yield _Source(self, source)

    @contextlib.contextmanager
    def compared(
        self, files: OutputFiles, spans: Sequence[Span], workers: int | None
    ) -> Iterator[Iterator[tuple[Span, bool]]]:
        """Let the nodes read what is written."""
        tasks: list[deque[_Task]] = []
        for file, path in enumerate(files.paths):
            inside = sorted((span for span in spans if span.file == file), key=lambda span: span.offset)
            for some in _portions(inside):
                tasks.append(deque([_Task(remote.compare, (path.absolute(), some), some)]))

        def each(results: Iterator[tuple[_Task, Any]]) -> Iterator[tuple[Span, bool]]:
            for task, good in results:
                yield from zip(task.of, good, strict=True)

        with self._each(tasks, 1) as results:
            yield each(results)

    def digests(self, files: Mapping[str, Path]) -> dict[str, tuple[int, str]]:
        """Bytes and checksum of every file."""
        sizes = {name: file.stat().st_size for name, file in files.items()}
        together = MOST_BYTES // PIECE
        tasks: list[deque[_Task]] = []
        for name, file in files.items():
            pieces = -(-sizes[name] // PIECE)
            for first in range(0, pieces, together):
                count = min(together, pieces - first)
                tasks.append(deque([_Task(remote.digests, (file.absolute(), first, count), (name, first))]))
        self._progress.start("checksums of the source", sum(sizes.values()))
        found: dict[str, dict[int, str]] = {name: {} for name in files}
        with self._each(tasks, 1) as results:
            for task, some in results:
                name, first = task.of
                found[name].update(enumerate(some, first))
                self._progress.advance(min(len(some) * PIECE, sizes[name] - first * PIECE))
        return {
            name: (sizes[name], joined(each[i] for i in range(len(each))))
            for name, each in sorted(found.items())
        }

    def _threads(self, workers: int | None, queues: int) -> int:
        """Threads of each task: those that were asked for, or a share of all cores.

        Raises
        ------
        ConfigError
            If no node has so many cores.
        BackendUnavailableError
            If no node has any.
        """
        cores = [int(node["Resources"].get("CPU", 0)) for node in self._ray.nodes() if node["Alive"]]
        largest = max(cores, default=0)
        if not largest:
            raise BackendUnavailableError(
                "ray", "no node of the cluster has a core to give", "Start nodes with --num-cpus 1 or more"
            )
        if workers is None:
            return min(largest, max(_THREADS, -(-sum(cores) // max(1, queues))))
        if not 1 <= workers <= largest:
            expected = f"1 to {largest}, the cores of the cluster's largest node"
            raise ConfigError(spelled("--threads", "workers"), workers, expected)
        return workers

    @contextlib.contextmanager
    def _each(self, queues: Sequence[deque[_Task]], cores: int) -> Iterator[Iterator[tuple[_Task, Any]]]:
        """Run the tasks, those of a queue one after the other, and give what comes of each.

        Ends with an error only when no task runs any more.
        """
        running: dict[Any, tuple[deque[_Task], _Task, int]] = {}
        with interruptible() as deliver:
            results = self._results(queues, cores, running, deliver)
            try:
                yield results
            finally:
                results.close()
                for reference in running:
                    # By force: what it does is between two checks for signals, for seconds.
                    self._ray.cancel(reference, force=True)
                if running:
                    self._ray.wait(list(running), num_returns=len(running), timeout=_GOODBYE)

    def _results(
        self,
        queues: Sequence[deque[_Task]],
        cores: int,
        running: dict[Any, tuple[deque[_Task], _Task, int]],
        deliver: Callable[[], None],
    ) -> Any:
        ray = self._ray
        functions: dict[Any, Any] = {}

        def submit(queue: deque[_Task], task: _Task, attempt: int) -> None:
            if task.work not in functions:
                # Lost ones are counted here, and not by Ray, which would not tell.
                options = {"num_cpus": cores, "max_retries": 0, "scheduling_strategy": "SPREAD"}
                functions[task.work] = ray.remote(**options)(task.work)
            running[functions[task.work].remote(*task.args)] = queue, task, attempt

        for queue in queues:
            submit(queue, queue.popleft(), 1)
        later: list[tuple[float, deque[_Task], _Task, int]] = []
        while running or later:
            deliver()
            now = time.monotonic()
            for again in [each for each in later if each[0] <= now]:
                later.remove(again)
                submit(*again[1:])
            if not running:
                time.sleep(_PATIENCE)
                continue
            done, _ = ray.wait(list(running), num_returns=1, timeout=_PATIENCE)
            for reference in done:
                queue, task, attempt = running.pop(reference)
                try:
                    outcome = ray.get(reference)
                except Exception as error:
                    if attempt == _ATTEMPTS or not isinstance(error, ray.exceptions.RayError):
                        raise _lost(error, attempt) from error
                    self._progress.notice(f"a part of the work was lost and is done again ({_reason(error)})")
                    # The cluster may not know yet that the node is gone.
                    later.append((time.monotonic() + attempt, queue, task, attempt + 1))
                    continue
                if outcome.error is not None:
                    raise outcome.error
                if queue:
                    submit(queue, queue.popleft(), 1)
                yield task, outcome.result


class _Source:
    """Checksums of a model's files, by the nodes of a cluster."""

    def __init__(self, cluster: Cluster, source: Checkpoint) -> None:
        self._cluster, self._source = cluster, source

    def reach(self, share: float) -> None:
        """Nothing is read before the end."""

    def finish(self) -> Mapping[str, tuple[int, str]]:
        """Bytes and checksum of every file, by name."""
        return self._cluster.digests(names_of(self._source))


def _portions(spans: Sequence[Span]) -> Iterator[list[Span]]:
    some: list[Span] = []
    held = 0
    for span in spans:
        if some and held + span.nbytes > MOST_BYTES:
            yield some
            some, held = [], 0
        some.append(span)
        held += span.nbytes
    if some:
        yield some


def _reason(error: Exception) -> str:
    """What happened to a task, in few words: Ray's messages fill screens."""
    name = type(error).__name__
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        return f"{type(cause).__name__}: {' '.join(str(cause).split())[:160]}"
    known = {
        "WorkerCrashedError": "its process ended",
        "NodeDiedError": "its node is gone",
        "LocalRayletDiedError": "its node is gone",
        "OutOfMemoryError": "its node ran out of memory",
        "ObjectLostError": "its node is gone",
        "OwnerDiedError": "its node is gone",
    }
    return known.get(name, name)


def _lost(error: Exception, attempts: int) -> WorkersLost:
    found = f"a part of the export failed {attempts} times, at last because of {_reason(error)}"
    return WorkersLost("ray", found, "What is written is kept: run the same command again to go on")
