"""Files of a model: whether they changed, how they are mapped, and Git LFS pointers."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qformats.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Fingerprint",
    "fingerprint",
    "is_text",
    "json_kind",
    "map_file",
    "parse_json",
    "refuse_link_out",
    "refuse_pointer",
]

_POINTER = b"version https://git-lfs"

_DEEPEST = 100
"""Objects in objects that JSON may hold: tokenizers have up to 10, and Python's own tools fail from 300 on."""

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


def is_text(name: object) -> bool:
    r"""Whether this is a string that files can hold: one without lone surrogates, which UTF-8 cannot encode.

    Examples
    --------
    >>> from qformats.work.files import is_text
    >>> is_text("model.norm.weight"), is_text("\ud800"), is_text(1)
    (True, False, False)
    """
    if not isinstance(name, str):
        return False
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def json_kind(value: Any) -> str:
    """What JSON calls a parsed value, for messages.

    Examples
    --------
    >>> from qformats.work.files import json_kind
    >>> [json_kind(value) for value in ({}, [], "a", 1.5, True, None)]
    ['object', 'list', 'string', 'number', 'boolean', 'null']
    """
    words = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return words.get(type(value), "number")


def parse_json(text: str | bytes) -> Any:
    """Value of a JSON text that somebody else wrote.

    Raises
    ------
    ValueError
        If it is not JSON, or nested more deeply than anything that is meant to be read.

    Examples
    --------
    >>> from qformats.work.files import parse_json
    >>> parse_json(b'{"bits": 4}')
    {'bits': 4}
    """
    too_deep = f"nested more than {_DEEPEST} deep"
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(too_deep) from None
    level: list[Any] = [[value]]
    for _ in range(_DEEPEST + 1):
        inside = (each.values() if isinstance(each, dict) else each for each in level)
        level = [each for values in inside for each in values if isinstance(each, dict | list)]
        if not level:
            return value
    raise ValueError(too_deep)


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


def refuse_link_out(file: Path, model: Path) -> None:
    """Refuse a file of a model that a link takes from elsewhere on the disk.

    Folders of models come from strangers, and what is read from them is copied into exports: a ``tokenizer.json``
    that leads to a private key must not be. In the hub's cache, whose files are links, those may lead to the blobs of
    the same repository. What the user named may be a link itself.

    Parameters
    ----------
    file : Path
        What will be read, there or not.
    model : Path
        What the user named: a folder, or a file of which the others are found beside it, or beside where it really is.

    Raises
    ------
    CheckpointError
        If it is somewhere else.

    Examples
    --------
    >>> import qformats
    >>> from qformats.work.files import refuse_link_out
    >>> folder = qformats.open("demo").path
    >>> refuse_link_out(folder / "config.json", folder)
    """
    # Not Path.resolve, which fails on links that lead to themselves.
    real, place = Path(os.path.realpath(model)), Path(os.path.realpath(file))
    homes = [real]
    if not model.is_dir():
        homes = [real.parent, Path(os.path.realpath(model.parent))]
    if any(place.is_relative_to(allowed) for home in homes for allowed in (home, *_blobs(home))):
        return
    hint = "do not trust a folder from elsewhere with such a link; if it is yours, put the file itself there"
    raise CheckpointError(file, f"is a link that leads out of the folder, to {place}", "a file", hint=hint)


def _blobs(home: Path) -> list[Path]:
    """Where the files of a folder in the hub's cache are: ``models--NAME/snapshots/REVISION`` links to ``blobs``."""
    return [
        snapshots.parent / "blobs"
        for snapshots in home.parents
        if snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--")
    ]
