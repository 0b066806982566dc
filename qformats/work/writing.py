"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import IO

from qformats.errors import OutputError
from qformats.work.targets import hidden_beside, refuse_stream

__all__ = ["check_place", "open_beside", "put_in_place", "write_bytes", "write_text"]


def check_place(path: Path) -> None:
    """Refuse a place for a file before the work is done, not after it.

    Raises
    ------
    OutputError
        If `path` is a folder, or is not in one; if it is a device or a pipe.
    """
    refuse_stream(path)
    if path.is_dir():
        raise OutputError(path, "is a folder", "Name a file")
    if not path.parent.is_dir():
        raise OutputError(path, f"there is no folder {path.parent}", "Create it, or choose another one")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(path, "its folder is not writable", "Choose another one")


def open_beside(path: Path) -> tuple[Path, IO[bytes]]:
    """A new file beside `path`, to be put in its place when it is whole."""
    beside = hidden_beside(path, path.name, ".12345678.partial").name.removesuffix("12345678.partial")
    handle, name = tempfile.mkstemp(prefix=beside, suffix=".partial", dir=path.parent)
    return Path(name), os.fdopen(handle, "wb")


def put_in_place(partial: Path, file: IO[bytes], path: Path) -> None:
    """Sync and close a file that :func:`open_beside` has made, and give it its name."""
    file.flush()
    os.fsync(file.fileno())
    # It was created for this user only, and gets the permissions of any new file.
    mask = os.umask(0)
    os.umask(mask)
    os.fchmod(file.fileno(), 0o666 & ~mask)
    file.close()
    partial.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file in place of the one that may be there; see :func:`write_bytes`."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in place of the one that may be there.

    Raises
    ------
    OutputError
        If the disk is full, or the place cannot be written.
    """
    try:
        partial, file = open_beside(path)
        try:
            file.write(content)
            put_in_place(partial, file, path)
        finally:
            file.close()
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(path, f"cannot be written ({error.strerror or error})") from error
