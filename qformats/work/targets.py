"""What can be written to: files and folders of their own, and nothing that only looks like one."""

from __future__ import annotations

import os
from pathlib import Path

from qformats.errors import OutputError

__all__ = ["refuse_stream"]


def refuse_stream(path: Path) -> None:
    """Refuse standard output, devices and pipes: what is written in pieces and renamed must be a file of its own.

    Raises
    ------
    OutputError
        If `path` is ``-``, something in ``/dev`` or ``/proc``, or anything else but a file or a folder.

    Examples
    --------
    >>> from pathlib import Path
    >>> from qformats.work.targets import refuse_stream
    >>> refuse_stream(Path("model.gguf"))
    """
    # Not Path.resolve, which fails on links that lead to themselves.
    place, parent = Path(os.path.realpath(path)), os.path.realpath(path.parent)
    stream = path.name == "-" or parent in ("/dev", "/dev/fd") or parent.startswith("/proc/")
    if stream or (place.exists() and not place.is_file() and not place.is_dir()):
        hint = "An output is written in pieces and put in place whole: give the name of a file on a disk"
        raise OutputError(path, "is not an ordinary file", hint)
