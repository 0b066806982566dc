"""Writing importance matrices in the GGUF form, tensor by tensor as llama-imatrix does."""

from __future__ import annotations

import numpy as np

from qformats import Checkpoint
from qformats.errors import ConfigError
from qformats.interfaces import ColumnSums, Importance
from qformats_gguf.header import TensorInfo, serialize
from qformats_gguf.imatrix.names import entries_of, of_one_input
from qformats_gguf.imatrix.read import COUNTS, SUMS
from qformats_gguf.metadata import Metadata, ValueType, array, string, u32
from qformats_gguf.types import by_name

__all__ = ["file_content"]


def file_content(importance: Importance, source: Checkpoint | None) -> bytes:
    """A whole file, entries sorted by name.

    Raises
    ------
    ConfigError
        If there is no entry, or a name is too long.
    """
    sums = dict(importance.sums) if source is None else _stacked(importance, source)
    if not sums:
        raise ConfigError("entries of the importance matrix", 0, "1 or more")
    metadata: Metadata = {
        "general.type": string("imatrix"),
        "imatrix.datasets": array(ValueType.STRING, importance.datasets),
        "imatrix.chunk_count": u32(importance.chunks),
        "imatrix.chunk_size": u32(importance.chunk_size),
    }
    tensors = {}
    for name in sorted(sums):
        tensors[name + SUMS] = sums[name].squares
        tensors[name + COUNTS] = sums[name].counts[:, None]
    infos = [TensorInfo(name, values.shape, by_name("f32")) for name, values in tensors.items()]
    header = serialize(metadata, infos)
    content = bytearray(header.total_size)
    content[: len(header.data)] = header.data
    for at, values in zip(header.offsets, tensors.values(), strict=True):
        stored = values.astype("<f4").tobytes()
        content[at : at + len(stored)] = stored
    return bytes(content)


def _stacked(importance: Importance, source: Checkpoint) -> dict[str, ColumnSums]:
    """Sums by GGUF name; those of experts side by side, with zeros for those that no token has reached."""
    found: dict[str, ColumnSums] = {}
    stacks: dict[str, dict[int, ColumnSums]] = {}
    sizes: dict[str, int] = {}
    for name, entry in entries_of(source).items():
        if entry.matrix is not None:
            sizes[entry.name] = max(sizes.get(entry.name, 0), entry.matrix + 1)
        sums = importance.sums.get(name)
        if sums is None:
            continue
        if entry.matrix is None:
            found[entry.name] = sums
        else:
            stacks.setdefault(entry.name, {})[entry.matrix] = sums
    for name, matrices in stacks.items():
        columns = next(iter(matrices.values())).squares.shape[1]
        none = ColumnSums(np.zeros((1, columns)), np.zeros(1))
        parts = [matrices.get(number, none) for number in range(sizes[name])]
        found[name] = ColumnSums(
            np.concatenate([part.squares for part in parts]), np.concatenate([part.counts for part in parts])
        )
    return found | {name: found[home] for name, home in of_one_input(source).items() if home in found}
