"""Reading importance matrices in the older binary form, usually called ``.dat``.

``i32 entries``, then for each ``i32 length, name, i32 calls, i32 values, f32[values]``; then, in files of 2024 and
later, ``i32 chunks, i32 length, data set``. Values are sums over calls of mean squares; experts are not counted apart.
"""

from __future__ import annotations

from pathlib import Path
from struct import unpack_from

import numpy as np

from qformats.errors import CheckpointError
from qformats.interfaces import ColumnSums, Importance
from qformats_gguf.imatrix.sums import require_sums

__all__ = ["read_legacy"]

_MAX_ENTRIES = 262_144
_MAX_NAME = 1024
"""Far beyond any model, and small enough to tell such a file from one of another kind by its first bytes."""
_CHUNK_SIZE = 512
"""Tokens of a chunk, which the file does not tell: llama.cpp too takes its default when it adds such files up."""


def read_legacy(path: Path) -> Importance | None:
    """Importance matrix of a file, under GGUF names; ``None`` if it does not begin like one.

    Raises
    ------
    CheckpointError
        If it is truncated or corrupt.
    """
    data = path.read_bytes()
    if not _begins_like_one(data):
        return None
    (count,) = unpack_from("<i", data)
    at = 4
    sums: dict[str, ColumnSums] = {}
    for number in range(count):
        name, at = _text(path, data, at, f"the name of entry {number + 1} of {count}", _MAX_NAME)
        calls, at = _integer(path, data, at, f"the calls of entry {name!r}")
        values, at = _integer(path, data, at, f"the number of values of entry {name!r}")
        if not name or name in sums:
            raise CheckpointError(path, f"has the name {name!r} twice or empty", "a name for each entry")
        if values < 1 or values > (len(data) - at) // 4:
            found = f"declares {values} values, with {len(data) - at} bytes left in the file"
            raise CheckpointError(path, found, "a complete file", tensor=name)
        if calls < 0:
            raise CheckpointError(path, f"declares {calls} calls", "0 or more", tensor=name)
        sums[name] = _entry(path, name, calls, np.frombuffer(data, "<f4", values, at))
        at += 4 * values
    chunks, dataset = _end(path, data, at)
    return Importance(sums, (str(path),), (dataset,) if dataset else (), chunks)


def _begins_like_one(data: bytes) -> bool:
    if len(data) < 12:
        return False
    count, length = unpack_from("<ii", data)
    name = data[8 : 8 + length] if 0 < length <= _MAX_NAME else b""
    return 0 < count <= _MAX_ENTRIES and bool(name) and all(32 < byte < 127 for byte in name)


def _entry(path: Path, name: str, calls: int, values: np.ndarray) -> ColumnSums:
    # Weighed by tokens, so that it can be added to files that count those. Exact: the factor is a power of two.
    squares = values.astype(np.float64)[None] * _CHUNK_SIZE
    return require_sums(path, name, squares, np.array([max(calls, 1) * float(_CHUNK_SIZE)]))


def _end(path: Path, data: bytes, at: int) -> tuple[int, str]:
    """Chunks and data set; older files do not tell."""
    if at == len(data):
        return 0, ""
    chunks, at = _integer(path, data, at, "the number of chunks")
    dataset = ""
    if at < len(data):
        dataset, at = _text(path, data, at, "the name of the data set", len(data))
    if at != len(data) or chunks < 0:
        found = f"has {len(data) - at} bytes after its end" if chunks >= 0 else f"declares {chunks} chunks"
        raise CheckpointError(path, found, "entries, chunks and the data set, and nothing else")
    return chunks, dataset


def _integer(path: Path, data: bytes, at: int, what: str) -> tuple[int, int]:
    if at + 4 > len(data):
        raise _truncated(path, data, what)
    return int(unpack_from("<i", data, at)[0]), at + 4


def _text(path: Path, data: bytes, at: int, what: str, limit: int) -> tuple[str, int]:
    length, at = _integer(path, data, at, f"the length of {what}")
    if not 0 <= length <= limit:
        raise CheckpointError(path, f"{what} is {length} bytes long", f"at most {limit}")
    if at + length > len(data):
        raise _truncated(path, data, what)
    return data[at : at + length].decode("utf-8", "replace"), at + length


def _truncated(path: Path, data: bytes, what: str) -> CheckpointError:
    found = f"ends at byte {len(data)}, within {what}"
    hint = "the file is truncated: download or write it again"
    return CheckpointError(path, found, "a complete importance matrix", hint=hint)
