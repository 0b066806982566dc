"""Files of a model: whether they changed, how they are mapped, and Git LFS pointers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qformats.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Fingerprint", "fingerprint", "map_file", "refuse_pointer"]

_POINTER = b"version https://git-lfs"

Fingerprint = tuple[tuple[str, int, int, int, int, int], ...]
"""Path, device, inode, size, and times of change of content and of inode, in nanoseconds, of every file."""


def fingerprint(files: Sequence[Path]) -> Fingerprint:
    """Identifies files, to tell whether they are still the ones that were opened.

    Examples
    --------
    >>> import qformats
    >>> from qformats.work.files import fingerprint
    >>> files = qformats.open("demo").files
    >>> fingerprint(files) == fingerprint(files)
    True
    """
    found = []
    for file in files:
        state = file.stat()
        times = (state.st_mtime_ns, state.st_ctime_ns)
        found.append((str(file.resolve()), state.st_dev, state.st_ino, state.st_size, *times))
    return tuple(found)


def map_file(path: Path) -> Tensor:
    """Memory-map a file read-only in effect: nothing is read until used, and nothing is ever written back.

    Returns
    -------
    Tensor
        uint8, ``(file size,)``; every view of it stays valid while the tensor lives.

    Raises
    ------
    CheckpointError
        If the file is empty.
    OSError
        If it cannot be read.

    Examples
    --------
    >>> import qformats
    >>> from qformats.work.files import map_file
    >>> config = map_file(qformats.open("demo").path / "config.json")
    >>> bytes(config[:1].tolist())
    b'{'
    """
    import mmap

    import torch

    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise CheckpointError(path, "is empty", hint="fetch or copy the file again")
        # A private mapping, because torch warns about tensors over read-only memory; unreserved, because the
        # kernel refuses private mappings larger than the machine's memory otherwise.
        flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0x4000)
        mapped = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return torch.frombuffer(mapped, dtype=torch.uint8)


def refuse_pointer(path: Path) -> None:
    """Refuse a file that Git LFS has not fetched: a few lines of text which name the data.

    Raises
    ------
    CheckpointError
        If it is one.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import qformats
    >>> from qformats.work.files import refuse_pointer
    >>> refuse_pointer(qformats.open("demo").path / "config.json")
    """
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            hint = "run `git lfs pull` in the folder, or download the file itself"
            raise CheckpointError(path, "is a Git LFS pointer, not the file itself", "the file", hint=hint)
