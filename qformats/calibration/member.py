"""One of the further processes of a calibration over several devices; the first one starts it."""

from __future__ import annotations

import os
import pickle
import sys
import threading

from qformats.errors import QFormatsError

__all__ = ["main"]


def main() -> None:
    """Read the job from the standard input, where the first process writes it, and do this process's share."""
    from qformats.calibration.run import take_part
    from qformats.calibration.team import Team
    from qformats.calibration.teamwork import READY, checked_source, join

    meeting, rank = sys.argv[1], int(sys.argv[2])
    # A private pipe of the process that started this one.
    try:
        job = pickle.load(sys.stdin.buffer)
    except (ImportError, AttributeError) as error:
        sys.exit(f"the quantizer cannot be imported there ({error})")
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    devices = job.settings.devices
    try:
        source = checked_source(job)
        # Seconds of imports, before the first process waits for this one, when it cannot tell that it is gone.
        import torch.distributed  # noqa: F401

        sys.stdout.buffer.write(READY)
        sys.stdout.buffer.flush()
        with join(meeting, rank, devices):
            take_part(job, source, Team(rank, len(devices)))
    except QFormatsError as error:
        sys.exit(str(error))


def _end_with_the_first() -> None:
    """Nobody is left to work for once the pipe from the first process ends."""
    # Not through sys.stdin, whose lock this thread would hold while the interpreter ends.
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)
