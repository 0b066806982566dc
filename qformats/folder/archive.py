"""The directory of a file that ``torch.save`` wrote: where its records lie, before any of them is read."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import IO

from qformats.errors import CheckpointError

__all__ = ["INTERRUPTED", "ZIP", "plain_records"]

INTERRUPTED = "the download or copy was interrupted: fetch the file again"
ZIP = b"PK\x03\x04"
"""First bytes of a zip file."""
_LOCAL_HEADER = 30
_ENCRYPTED = 1


def plain_records(path: Path, file: IO[bytes]) -> dict[str, tuple[int, int]]:
    """First byte and size of every record, if all of them are plain and lie in the file one after the other.

    torch writes no others; it would read compressed ones, and a megabyte of these makes gigabytes of zeros. So
    would records that share their bytes.

    Parameters
    ----------
    path : Path
        Name of the file, for errors.
    file : binary file
        The zip file, seekable.

    Raises
    ------
    CheckpointError
        If a record is compressed, cut off, or overlaps another one.

    Examples
    --------
    >>> import io, zipfile
    >>> from pathlib import Path
    >>> from qformats.folder import plain_records
    >>> file = io.BytesIO()
    >>> with zipfile.ZipFile(file, "w") as archive:
    ...     archive.writestr("model/data/0", bytes(16))
    >>> plain_records(Path("model.bin"), file)
    {'model/data/0': (42, 16)}
    """
    try:
        with zipfile.ZipFile(file) as archive:
            listed = [(_start_of(file, record), record) for record in archive.infolist()]
        size = file.seek(0, 2)
    except Exception as error:
        # zipfile has a type for each way an archive can be wrong.
        told = f"is cut off or damaged ({error})"
        raise CheckpointError(path, told, "a file of torch.save", hint=INTERRUPTED) from error
    found: dict[str, tuple[int, int]] = {}
    end = 0
    for start, record in sorted(listed, key=lambda each: (each[0], each[1].file_size)):
        name, length = record.filename, record.file_size
        if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & _ENCRYPTED:
            raise CheckpointError(path, f"record {name} is compressed", "plain records, as torch writes them")
        if start + length > size:
            raise CheckpointError(path, f"record {name} is cut off", hint=INTERRUPTED)
        if start < end or name in found:
            raise CheckpointError(
                path, f"record {name} overlaps another one", "records apart from each other"
            )
        found[name], end = (start, length), start + length
    return found


def _start_of(file: IO[bytes], record: zipfile.ZipInfo) -> int:
    """First byte of a record's content."""
    file.seek(record.header_offset)
    name, extra = struct.unpack("<26x2H", file.read(_LOCAL_HEADER))
    return record.header_offset + _LOCAL_HEADER + int(name) + int(extra)
