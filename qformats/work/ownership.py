"""Which left-over of an interrupted run this user wrote: anyone can put a folder of that name beside a model.

A cloned repository or an unpacked archive may hold a partial output with a journal that tells what to move where. Files
that steer a later run therefore carry a token made with a key that only this user has; without it they are not trusted.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
from functools import cache
from pathlib import Path

from qformats.errors import OutputError

__all__ = ["is_ours", "open_private", "own_folder", "token"]

_LENGTH = 32
"""Bytes of the key."""


@cache
def _key() -> bytes:
    """Key of this user; one for this process alone where none can be kept, so that nothing is resumed later."""
    base = os.environ.get("XDG_STATE_HOME") or ""
    # The specification wants relative paths ignored.
    state = Path(base) if os.path.isabs(base) else Path.home() / ".local" / "state"
    file = state / "qformats" / "resume-key"
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = secrets.token_bytes(_LENGTH)
        try:
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except FileExistsError:
            pass
        else:
            with os.fdopen(handle, "wb") as out:
                out.write(fresh)
        handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(handle, "rb") as kept:
            state_of = os.fstat(kept.fileno())
            key = kept.read(_LENGTH)
    except OSError:
        return secrets.token_bytes(_LENGTH)
    private = state_of.st_uid == os.geteuid() and not stat.S_IMODE(state_of.st_mode) & 0o077
    return key if private and len(key) == _LENGTH else secrets.token_bytes(_LENGTH)


def token(folder: Path, content: str) -> str:
    """Token of a steering file: for this folder, by its place and inode, and this content.

    Parameters
    ----------
    folder : Path
        The folder that holds the file; it exists.
    content : str
        What the file tells that must not be somebody else's.
    """
    state = folder.stat(follow_symlinks=False)
    told = "\0".join((os.path.realpath(folder), str(state.st_dev), str(state.st_ino), content))
    return hmac.new(_key(), told.encode(errors="surrogateescape"), hashlib.sha256).hexdigest()


def is_ours(folder: Path, content: str, found: object) -> bool:
    """Whether `found` is the token that this user made for this folder and content."""
    return isinstance(found, str) and hmac.compare_digest(found.encode(), token(folder, content).encode())


def own_folder(folder: Path, target: Path) -> None:
    """Make a folder that is this user's alone, or refuse one that is there and is not.

    Raises
    ------
    OutputError
        If it is a link, not a folder, another user's, or others can write in it.
    """
    while True:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            # Some file systems (exFAT, network shares) have neither modes nor owners; nobody was here before us.
            return
        # Another process may be about to remove it.
        with contextlib.suppress(FileNotFoundError):
            state = folder.stat(follow_symlinks=False)
            break
    what = None
    if not stat.S_ISDIR(state.st_mode):
        what = "is a link or a file, not the folder of an interrupted export"
    elif state.st_uid != os.geteuid():
        what = "belongs to another user"
    elif stat.S_IMODE(state.st_mode) & 0o022:
        what = "can be written by other users"
    if what is not None:
        raise OutputError(target, f"{folder.name} beside it {what}", "Look at it and remove it")


def open_private(file: Path, flags: int) -> int:
    """Open a file of such a folder without following a link; made readable by this user only."""
    return os.open(file, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
