"""Starting the processes of a calibration over several devices, listening to them, and ending them."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qformats.calibration.layer import Round
from qformats.calibration.settings import Settings
from qformats.errors import ConfigError, Described, QFormatsError, WorkerError
from qformats.work.files import Fingerprint
from qformats.work.progress import Progress

if TYPE_CHECKING:
    from qformats.interfaces.checkpoint import Checkpoint
    from qformats.interfaces.packer import Packer

__all__ = ["FAILED", "Job", "Said", "checked_source", "join", "lead"]

Said = tuple[str, tuple[Any, ...]]
"""What a process says: a method of :class:`Progress` with its arguments, or :data:`FAILED` with an error."""
FAILED = "failed"

_PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others: solving the largest layer, and no longer, keeps them apart."""
_GOODBYE = 60
"""Seconds in which a process must end once its work is done."""
_LOOK = 0.2
"""Seconds for which this process waits at a time."""
_SETTLING = 5
"""Seconds in which processes of a team must have ended to be asked why."""
_START = "from qformats.calibration.member import main; main()"
_AGAIN = "The others were ended, too. Run the same command again: it goes on after the last finished block"
_SHOWN = 2000
"""Last characters that are shown of what a process has said."""


@dataclass(frozen=True)
class Job:
    """All that a process must know to take part in a calibration.

    Attributes
    ----------
    source, kind : str
        Path of the model, and the class that it is open as.
    fingerprint : Fingerprint
        Of its files.
    formats : dict of str to (str or Packer)
        The format that each tensor gets: its full name, or itself where it is not the registry's own, such as one that
        shares a number with other tensors.
    stored : dict of str to str
        And of the one that it has.
    work : str
        Folder for finished blocks.
    settings : Settings
        With all devices.
    round_layers : callable
        The quantizer, as something that can be pickled.
    identity : dict of str to str
        What else decides the result.
    drift : bool
        Whether to run the unquantized model, too.
    """

    source: str
    kind: str
    fingerprint: Fingerprint
    formats: dict[str, str | Packer]
    stored: dict[str, str]
    work: str
    settings: Settings
    round_layers: Round
    identity: dict[str, str]
    drift: bool


def lead(job: Job, progress: Progress) -> None:
    """Run all processes of a calibration to their end.

    This process is none of them, and waits for nothing that they are in: a collective operation, of NCCL for instance,
    may never end once one of the others is gone. So it sees one that dies, and ends the rest.

    Parameters
    ----------
    job : Job
        The calibration. Its finished blocks are on disk afterwards.
    progress : Progress
        Receives progress reports of the first process.

    Raises
    ------
    ConfigError
        If the quantizer cannot be sent to other processes, or this one already belongs to others.
    QFormatsError
        What the first process raises.
    WorkerError
        If a process dies, or another than the first one fails.
    """
    import torch.distributed as group

    devices = job.settings.devices
    if not group.is_available():
        raise ConfigError("device", Described("a torch without torch.distributed"), "one device")
    if group.is_initialized():
        found = Described("several devices in a process that torch.distributed connects to others")
        raise ConfigError("device", found, "one device, or a process that was started by itself")
    try:
        sent = pickle.dumps(job)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        found = Described(f"a quantizer that cannot be sent to other processes ({error})")
        hint = "Its author makes it a function of a module, or functools.partial of one"
        raise ConfigError("device", found, "one device", hint) from error
    progress.notice(f"calibrating on {len(devices)} devices: {', '.join(devices)}")
    with tempfile.TemporaryDirectory(prefix="qformats-team-") as meeting, contextlib.ExitStack() as stack:
        heard: queue.SimpleQueue[tuple[Member, Said | None]] = queue.SimpleQueue()
        members: list[Member] = []
        for rank in range(len(devices)):
            members.append(Member(rank, devices, meeting, heard))
            stack.callback(members[-1].end)
        for member in members:
            member.start(sent)
        _listen(members, heard, progress)


def _listen(
    members: Sequence[Member], heard: queue.SimpleQueue[tuple[Member, Said | None]], progress: Progress
) -> None:
    """Pass on what the processes say until all of them have ended."""
    working = {*members}
    while working:
        # Never for long: Ctrl-C comes between two looks.
        with contextlib.suppress(queue.Empty):
            member, said = heard.get(timeout=_LOOK)
            if said is not None:
                what, arguments = said
                getattr(progress, what)(*arguments)
                continue
            # The end of its pipe: it has ended, or is about to.
            working.discard(member)
            if member.failed(_GOODBYE):
                raise _failure(member, members)


def _failure(first: Member, members: Sequence[Member]) -> QFormatsError:
    """What to say of a calibration of which one process has failed first."""
    told = first
    if not first.knows_why:
        # What torch raises if another process is gone; that one knows why.
        ended = (each for each in members if each is not first and each.failed(_SETTLING / len(members)))
        told = next((each for each in ended if each.knows_why), first)
    if told.rank == 0 and told.error is not None:
        return told.error
    worker = f"process {told.rank + 1} of {len(members)} ({told.device})"
    return WorkerError(worker, told.found, None if told.error else _AGAIN, lost=told.error is None)


class Member:
    """One of the processes, as the one that starts it sees it.

    Parameters
    ----------
    rank : int
        Its number, from 0.
    devices : tuple of str
        Of all processes.
    meeting : str
        Folder in which they find each other.
    heard : queue.SimpleQueue
        Receives what it says, and ``None`` when its pipe ends.

    Attributes
    ----------
    error : QFormatsError or None
        What it says is wrong.
    """

    def __init__(
        self,
        rank: int,
        devices: tuple[str, ...],
        meeting: str,
        heard: queue.SimpleQueue[tuple[Member, Said | None]],
    ) -> None:
        self.rank, self.device = rank, devices[rank]
        self.error: QFormatsError | None = None
        self._heard = heard
        self._shown = Path(meeting, f"said-{rank}")
        with self._shown.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, meeting, str(rank)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env={**os.environ, **_environment()},
                # Ctrl-C reaches this process, which ends the others.
                start_new_session=True,
            )
        self._listener = threading.Thread(target=self._hear, daemon=True)

    def start(self, job: bytes) -> None:
        """Give it the job, and begin to listen."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            # Left open: a process whose standard input ends knows that this one is gone.
            self._process.stdin.write(job)
            self._process.stdin.flush()
        self._listener.start()

    def _hear(self) -> None:
        assert self._process.stdout is not None
        try:
            # Cut off in the middle of a message if it is killed.
            with contextlib.suppress(EOFError, pickle.UnpicklingError):
                while True:
                    said: Said = pickle.load(self._process.stdout)
                    if said[0] == FAILED:
                        (self.error,) = said[1]
                    else:
                        self._heard.put((self, said))
        finally:
            self._heard.put((self, None))

    def failed(self, patience: float) -> bool:
        """Whether it has ended otherwise than well, or does not end within so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(patience) != 0
        return True

    @property
    def knows_why(self) -> bool:
        """Whether how it has ended is the reason, and not what followed from the end of another one."""
        return self.error is not None or (self._process.returncode or 0) < 0

    @property
    def found(self) -> str:
        """How it has ended, as a clause."""
        code = self._process.returncode
        if self.error is not None:
            return f"failed, saying: {self.error}"
        if code is None:
            return "does not answer"
        if code < 0:
            return f"was killed by signal {-code}"
        said = self._shown.read_text(errors="replace")[-_SHOWN:].strip()
        return f"ended with code {code}" + (f", saying: {said}" if said else "")

    def end(self) -> None:
        """Kill it if it is still there, and forget it."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._listener.ident is not None:
            self._listener.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@contextlib.contextmanager
def join(meeting: str, rank: int, devices: tuple[str, ...]) -> Iterator[None]:
    """Connect this process to the others in the block.

    Parameters
    ----------
    meeting : str
        Folder that all of them see.
    rank : int
        Number of this one.
    devices : tuple of str
        Of all of them.
    """
    import torch
    import torch.distributed as group

    os.environ.update(_environment())
    places = [torch.device(device) for device in devices]
    # NCCL wants a device for each process; gloo takes anything.
    alone = len(set(devices)) == len(devices) and all(place.type == "cuda" for place in places)
    if places[rank].type == "cuda":
        torch.cuda.set_device(places[rank])
    group.init_process_group(
        "nccl" if alone else "gloo",
        init_method=f"file://{meeting}/store",
        rank=rank,
        world_size=len(devices),
        timeout=_PATIENCE,
    )
    try:
        yield
    finally:
        group.destroy_process_group()


def _environment() -> dict[str, str]:
    """Processes of one machine find each other without its name, which may not resolve."""
    return {} if "GLOO_SOCKET_IFNAME" in os.environ else {"GLOO_SOCKET_IFNAME": "lo"}


def checked_source(job: Job) -> Checkpoint:
    """The model of a job, opened again.

    Raises
    ------
    ConfigError
        If it is not the one that the first process has opened.
    """
    from qformats.sources import open_model
    from qformats.work.files import fingerprint

    source = open_model(job.source, {})
    stored = {name: tensor.format for name, tensor in source.tensors.items()}
    if (
        fingerprint(source.files) != job.fingerprint
        or stored != job.stored
        or type(source).__name__ != job.kind
    ):
        found = Described(
            f"several for {job.source}, which is not what is on disk, but made while it is read"
        )
        raise ConfigError("device", found, "one device; or write the model to disk first")
    return source
