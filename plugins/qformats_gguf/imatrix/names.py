"""What the entries of an importance matrix are called, for each tensor of a model."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from qformats import Checkpoint
from qformats.errors import CheckpointError, ConfigError, UnsupportedModelError
from qformats.interfaces import ColumnSums, Importance
from qformats_gguf.architectures import Architecture
from qformats_gguf.architectures.rows import ROWS
from qformats_gguf.checkpoint import GGUFCheckpoint

__all__ = ["Entry", "entries_of", "named", "of_one_input"]

_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(.+)")
_BLOCK = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Entry:
    """Where an importance matrix holds what is multiplied with a tensor.

    Attributes
    ----------
    name : str
        Name of a tensor in GGUF.
    matrix : int or None
        Which of its matrices, where it stacks those of all experts.
    """

    name: str
    matrix: int | None = None


def named(importance: Importance, source: Checkpoint) -> dict[str, ColumnSums]:
    """Sums of a file's entries, by the names of a model's tensors: canonical ones, and those of its own container."""
    entries = _separated(importance.sums, source)
    found: dict[str, ColumnSums] = {}
    if isinstance(source, GGUFCheckpoint):
        found |= {name: entries[name] for name in source.stored if name in entries}
    experts = _experts(entries_of(source).values())
    for name, entry in entries_of(source).items():
        sums = entries.get(entry.name, entries.get(name))
        if sums is None:
            continue
        if entry.matrix is not None and entry.name in entries:
            sums = sums.divided(experts[entry.name])
            if entry.matrix >= len(sums.counts):
                continue
            sums = sums.matrix(entry.matrix)
        found[name] = sums
    return found


def entries_of(source: Checkpoint) -> dict[str, Entry]:
    """Entry of each tensor of a model, by canonical name.

    Models without an architecture here are named by the tables of the ``gguf`` package, which know more of them; what
    these do not know either keeps its canonical name.
    """
    if isinstance(source, GGUFCheckpoint):
        return {name: Entry(gguf) for gguf, parts in source.parts.items() for name in parts}
    architecture = _architecture(source)
    return {name: _entry(name, architecture) for name in source.tensors}


def of_one_input(source: Checkpoint) -> dict[str, str]:
    """Tensors of GGUF that are parts of one on disk, and so have its inputs, with the first of these parts."""
    architecture = None if isinstance(source, GGUFCheckpoint) else _architecture(source)
    found: dict[str, str] = {}
    first: dict[str, str] = {}
    for mapping in architecture.expected_tensors() if architecture is not None else ():
        if mapping.piece is not None and not mapping.piece.groups:
            home = first.setdefault(mapping.canonical, mapping.gguf)
            if home != mapping.gguf:
                found[mapping.gguf] = home
    return found


def _architecture(source: Checkpoint) -> Architecture | None:
    try:
        names, file = source.tensors.keys(), str(source.path)
        return Architecture.from_config(source.config, names=names, source=file, force=True)
    except (UnsupportedModelError, CheckpointError, ConfigError):
        # Names need no more than tables of names.
        return None


def _entry(name: str, architecture: Architecture | None) -> Entry:
    if architecture is not None:
        try:
            mapping = architecture.map_tensor(name)
        except CheckpointError:
            mapping = None
        if mapping is not None and mapping.piece is not None and mapping.piece.groups:
            # What llama.cpp multiplies with its parts is something else.
            return Entry(name)
        if mapping is not None:
            expert = _EXPERT.fullmatch(name) if mapping.stack else None
            return Entry(mapping.gguf, None if expert is None else int(expert[2]))
    stem = name.removesuffix(".weight")
    expert = _EXPERT.fullmatch(stem)
    if expert is not None:
        stem = f"{expert[1]}.{expert[3]}"
    block = _BLOCK.search(stem)
    place = stem if block is None else f"{stem[: block.start()]}.{{bid}}.{stem[block.end() :]}"
    gguf = _tables().get(place)
    if gguf is None or (block is None) != ("{bid}" not in gguf):
        return Entry(name)
    gguf = gguf if block is None else gguf.replace("{bid}", block[1])
    return Entry(f"{gguf}.weight", None if expert is None else int(expert[2]))


@functools.cache
def _tables() -> Mapping[str, str]:
    """Names of matrices in GGUF, by those in Transformers, with ``{bid}`` for the block."""
    from gguf.constants import TENSOR_NAMES
    from gguf.tensor_mapping import TensorNameMap

    found: dict[str, str] = {}
    for table in (TensorNameMap.mappings_cfg, TensorNameMap.block_mappings_cfg):
        for tensor, names in table.items():
            gguf = TENSOR_NAMES[tensor]
            for name in names:
                # RWKV calls parts of its blocks what others call their attention; it has none of the latter's names.
                if name not in found or "time_mix" in found[name]:
                    found[name] = gguf
    return found


def _separated(sums: Mapping[str, ColumnSums], source: Checkpoint) -> dict[str, ColumnSums]:
    """Entries also under the names of what they consist of: queries, keys and values have one input."""
    found = dict(sums)
    architecture = _architecture(source) if not isinstance(source, GGUFCheckpoint) else None
    rows = [architecture.row] if architecture is not None else list(ROWS.values())
    for name, each in sums.items():
        for row in rows:
            for part in row.separate(name):
                found.setdefault(part, each)
    return found


def _experts(entries: Iterable[Entry]) -> dict[str, int]:
    """Matrices of each stacked tensor."""
    found: dict[str, int] = {}
    for entry in entries:
        if entry.matrix is not None:
            found[entry.name] = max(found.get(entry.name, 0), entry.matrix + 1)
    return found
