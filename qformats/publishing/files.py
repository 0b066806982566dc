"""The two files beside the outputs, and the checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from qformats.errors import CheckpointError
from qformats.work.pool import bounded
from qformats.work.progress import Progress

__all__ = ["CARD", "CHECKSUMS", "checksums", "inside"]

CARD = "README.md"
CHECKSUMS = "SHA256SUMS"
_READ_AHEAD = 1 << 40
"""Bytes of files that are read at a time: a file takes a small buffer, however long it is."""
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}
"""What sha256sum writes for characters that would break its lines; such a line begins with a backslash."""


def inside(paths: Iterable[Path]) -> list[Path]:
    """Every file of the outputs, in the order of their names."""
    found: set[Path] = set()
    for path in paths:
        found |= {file for file in path.rglob("*") if file.is_file()} if path.is_dir() else {path}
    return sorted(found)


def checksums(folder: Path, files: Iterable[Path], workers: int, progress: Progress) -> str:
    """SHA-256 of files, as ``sha256sum`` writes it and ``sha256sum -c`` reads it.

    Parameters
    ----------
    folder : Path
        What the names are relative to.
    files : iterable of Path
        Read from beginning to end.
    workers : int
        Threads.
    progress : Progress
        Receives progress reports.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from qformats.publishing.files import checksums
    >>> from qformats.work.progress import Silent
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "a.txt")
    ...     _ = file.write_text("a")
    ...     print(checksums(Path(folder), [file], 1, Silent()), end="")
    ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb  a.txt
    """
    sizes = {file: file.stat().st_size for file in files}
    progress.start("checksums", sum(sizes.values()))
    lines = []
    with bounded(
        _digest, sizes, workers, weight=lambda file: sizes[file], limit=_READ_AHEAD, ordered=True
    ) as done:
        for file, digest in done:
            name = file.relative_to(folder).as_posix()
            escaped = "".join(_ESCAPES.get(c, c) for c in name)
            lines.append(f"{'' if escaped == name else chr(92)}{digest}  {escaped}\n")
            progress.advance(sizes[file])
    return "".join(lines)


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(
            path, f"cannot be read ({error.strerror or error})", "what was written"
        ) from error
