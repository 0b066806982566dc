"""What can be written to: files and folders of their own, and nothing that only looks like one."""

from __future__ import annotations

import os
from pathlib import Path

import xxhash

from qformats.errors import OutputError

__all__ = ["LONGEST_NAME", "hidden_beside", "refuse_stream"]

LONGEST_NAME = 255
"""Bytes of a file's name, on every file system in use."""
_KEPT = 160
"""Bytes that are kept of a name which is too long with what is added to it."""


def hidden_beside(target: Path, name: str, suffix: str) -> Path:
    """A hidden place beside a target that is named after it, shortened if that would be too long.

    Examples
    --------
    >>> from pathlib import Path
    >>> from qformats.work.targets import hidden_beside
    >>> hidden_beside(Path("out/model"), "model", ".partial").as_posix()
    'out/.model.partial'
    >>> len(hidden_beside(Path("x" * 255), "x" * 255, ".partial").name)
    186
    """
    whole = os.fsencode(f".{name}{suffix}")
    if len(whole) > LONGEST_NAME:
        told = xxhash.xxh3_64_hexdigest(os.fsencode(name))
        start = os.fsencode(name)[:_KEPT].decode("utf-8", "ignore")
        return target.with_name(f".{start}~{told}{suffix}")
    return target.with_name(f".{name}{suffix}")


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
