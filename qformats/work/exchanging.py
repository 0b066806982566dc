"""Two names of a file system that change places at once."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

__all__ = ["exchange"]

_HERE = -100
"""AT_FDCWD of Linux: paths are relative to the working directory."""
_EXCHANGE = 2
"""RENAME_EXCHANGE of Linux."""
_NOT_HERE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)
"""What kernels and file systems answer that cannot do it."""


def exchange(first: Path, second: Path) -> bool:
    """Let two existing paths of one file system change places in a single step, which no kill can divide.

    Returns
    -------
    bool
        False, and nothing has happened, if the system or the file system cannot do it.

    Raises
    ------
    OSError
        If one of them is missing, or the disk fails.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from qformats.work.exchanging import exchange
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     old, new = Path(folder, "old"), Path(folder, "new")
    ...     written = old.write_text("old"), new.write_text("new")
    ...     done = exchange(old, new)
    ...     (old.read_text(), new.read_text()) == (("new", "old") if done else ("old", "new"))
    True
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    call.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    if call(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NOT_HERE:
        return False
    raise OSError(number, os.strerror(number), str(first), None, str(second))
