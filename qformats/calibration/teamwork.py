"""Starting the other processes of a calibration over several devices, and ending them."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from qformats.calibration.layer import Round
from qformats.calibration.settings import Settings
from qformats.calibration.team import Team
from qformats.errors import ConfigError, Described, WorkerError
from qformats.work.files import Fingerprint
from qformats.work.progress import Progress

if TYPE_CHECKING:
    from qformats.interfaces.checkpoint import Checkpoint

__all__ = ["READY", "Job", "checked_source", "join", "leading"]

READY = b"ready\n"
"""What a process says when it knows its job and has opened the model."""

_PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others: solving the largest layer, and no longer, keeps them apart."""
_GOODBYE = 60
"""Seconds in which a process must end once its work is done."""
_START = "from qformats.calibration.member import main; main()"
_AGAIN = "Export again: finished blocks are kept while the partial output is"
_SHOWN = 2000
"""Last characters that are shown of what a process has said."""


@dataclass(frozen=True)
class Job:
    """All that another process must know to take part in a calibration.

    Attributes
    ----------
    source, kind : str
        Path of the model, and the class that it is open as.
    fingerprint : Fingerprint
        Of its files.
    formats : dict of str to str
        Full name of the format that each tensor gets.
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
    formats: dict[str, str]
    stored: dict[str, str]
    work: str
    settings: Settings
    round_layers: Round
    identity: dict[str, str]
    drift: bool


@contextlib.contextmanager
def leading(job: Job, progress: Progress) -> Iterator[Team]:
    """Run the other processes of a calibration while the block runs in this one, which is the first.

    Raises
    ------
    ConfigError
        If the quantizer cannot be sent to other processes, or this one already belongs to others.
    WorkerError
        If another process fails.
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
        members: list[tuple[subprocess.Popen[bytes], Path]] = []
        for rank in range(1, len(devices)):
            said = Path(meeting, f"said-{rank}")
            with said.open("wb") as file:
                member = subprocess.Popen(
                    [sys.executable, "-P", "-c", _START, meeting, str(rank)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=file,
                    env={**os.environ, **_environment()},
                    # Ctrl-C reaches this process, which ends the others.
                    start_new_session=True,
                )
            members.append((member, said))
            stack.callback(_end, member)
            assert member.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                # Left open: a process whose standard input ends knows that this one is gone.
                member.stdin.write(sent)
                member.stdin.flush()
        for member, _ in members:
            assert member.stdout is not None
            # Before anybody waits for anybody: what is wrong with a job shows now.
            if member.stdout.readline() != READY:
                raise _failure(members, devices, None)
        try:
            with join(meeting, 0, devices):
                yield Team(0, len(devices))
            for member, _ in members:
                member.wait(_GOODBYE)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            # What torch raises if another process is gone; that one knows why.
            raise _failure(members, devices, error) from error
        if any(member.returncode for member, _ in members):
            raise _failure(members, devices, None)


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


def _end(member: subprocess.Popen[bytes]) -> None:
    if member.poll() is None:
        member.kill()
    # Closes its pipes, too.
    member.communicate()


def _failure(
    members: list[tuple[subprocess.Popen[bytes], Path]], devices: tuple[str, ...], error: Exception | None
) -> WorkerError:
    for rank, (member, said) in enumerate(members, 1):
        with contextlib.suppress(subprocess.TimeoutExpired):
            member.wait(5)
        code = member.returncode
        if code:
            found = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            told = said.read_text(errors="replace")[-_SHOWN:].strip()
            worker = f"process {rank + 1} of {len(devices)} ({devices[rank]})"
            return WorkerError(worker, found + (f", saying: {told}" if told else ""), _AGAIN)
    return WorkerError(f"one of {len(devices)} processes", f"does not answer ({error})", _AGAIN)


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
