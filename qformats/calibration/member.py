"""One of the processes of a calibration over several devices; the one that the user has started starts them."""

from __future__ import annotations

import os
import pickle
import sys
import threading
from typing import BinaryIO

from qformats.errors import ConfigError, Described, QFormatsError

__all__ = ["main"]


def main() -> None:
    """Read the job from the standard input, and do this process's share of it."""
    from qformats.calibration.run import take_part
    from qformats.calibration.team import Team
    from qformats.calibration.teamwork import FAILED, checked_source, join
    from qformats.work.progress import Silent

    meeting, rank = sys.argv[1], int(sys.argv[2])
    # Whatever a library prints is no message.
    told = _Telling(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)
    # A private pipe of the process that started this one.
    try:
        job = pickle.load(sys.stdin.buffer)
    except (ImportError, AttributeError) as error:
        found = Described(f"several for a quantizer that cannot be imported there ({error})")
        told.say(FAILED, ConfigError("device", found, "one device"))
        sys.exit(1)
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    devices = job.settings.devices
    try:
        source = checked_source(job)
        with join(meeting, rank, devices):
            take_part(job, source, Team(rank, len(devices)), Silent() if rank else told)
    except QFormatsError as error:
        told.say(FAILED, error)
        sys.exit(1)


class _Telling:
    """Progress that is shown by the process that started this one.

    Parameters
    ----------
    pipe : file
        Which leads there.
    """

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe

    def say(self, what: str, *arguments: object) -> None:
        pickle.dump((what, arguments), self._pipe)
        self._pipe.flush()

    def start(self, task: str, total: int) -> None:
        self.say("start", task, total)

    def advance(self, nbytes: int) -> None:
        self.say("advance", nbytes)

    def notice(self, text: str) -> None:
        self.say("notice", text)


def _end_with_the_first() -> None:
    """Nobody is left to work for once the pipe from the process that started this one ends."""
    # Not through sys.stdin, whose lock this thread would hold while the interpreter ends.
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)
