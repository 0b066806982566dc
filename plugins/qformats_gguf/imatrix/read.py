"""Reading importance matrices in the GGUF form."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from qformats.errors import CheckpointError
from qformats.interfaces import ColumnSums, Importance
from qformats_gguf.imatrix.legacy import read_legacy
from qformats_gguf.imatrix.sums import require_sums
from qformats_gguf.metadata import Keys
from qformats_gguf.reader import GGUFFile, read

__all__ = ["COUNTS", "SUMS", "read_imatrix"]

SUMS, COUNTS = ".in_sum2", ".counts"
"""How the names of an entry's two tensors end. Newer files also hold plain sums (``.in_sum``), which nothing needs."""


def read_imatrix(path: Path) -> Importance | None:
    """Importance matrix of a file in either form, under GGUF names; ``None`` if it is a file of another kind.

    Raises
    ------
    CheckpointError
        If it is truncated or corrupt, holds numbers that cannot be sums of squares, or is a model.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            return read_legacy(path)
    with read(path) as content:
        return _from_gguf(path, content)


def _from_gguf(path: Path, file: GGUFFile) -> Importance:
    keys = Keys(file.metadata, str(path))
    kind = keys.text("general.type", "")
    names = [name.removesuffix(SUMS) for name in file.tensors if name.endswith(SUMS)]
    if kind != "imatrix" and (kind or not names):
        found = f"is a GGUF file with a {kind or 'model'}"
        raise CheckpointError(
            path, found, "an importance matrix", hint="give the file that llama-imatrix writes"
        )
    if not names:
        raise CheckpointError(path, "holds no entries", f"tensors whose names end in {SUMS}")
    alone = [
        name for name in file.tensors if name.endswith(COUNTS) and name.removesuffix(COUNTS) not in names
    ]
    if alone:
        name = alone[0].removesuffix(COUNTS) + SUMS
        raise CheckpointError(path, "is missing", "a sum of squares beside each count", tensor=name)
    return Importance(
        {name: _entry(path, file, name) for name in names},
        files=(str(path),),
        datasets=tuple(keys.strings("imatrix.datasets", ())),
        chunks=keys.integer("imatrix.chunk_count", 0, minimum=0) or 0,
        chunk_size=keys.integer("imatrix.chunk_size", 0, minimum=0) or 0,
    )


def _entry(path: Path, file: GGUFFile, name: str) -> ColumnSums:
    if name + COUNTS not in file.tensors:
        raise CheckpointError(path, "is missing", "a count beside each sum of squares", tensor=name + COUNTS)
    squares, counts = _numbers(path, file, name + SUMS), _numbers(path, file, name + COUNTS)
    if squares.size % counts.size:
        found = f"{squares.size} sums and {counts.size} counts"
        raise CheckpointError(path, found, "as many sums for each count", tensor=name)
    return require_sums(path, name, squares.reshape(counts.size, -1), counts)


def _numbers(path: Path, file: GGUFFile, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    stored = file.tensors[name]
    if stored.type is None or stored.type.name != "f32":
        found = f"has type {stored.type.name if stored.type else stored.type_id}"
        raise CheckpointError(path, found, "f32", tensor=name)
    if not math.prod(stored.shape):
        raise CheckpointError(path, "is empty", "one number or more", tensor=name)
    return np.frombuffer(file.data(name).tobytes(), "<f4").astype(np.float64)
