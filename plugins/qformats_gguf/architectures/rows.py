"""The table that maps Hugging Face models to GGUF architectures, tensor by tensor and key by key.

Adding an architecture is adding a file to ``table/``, or to another plugin, which names it in the hook of
``hookspecs.py``: data, without code; ``read.py`` says what is in one. Canonical names are those of Transformers' model
classes on disk; weights are ``[out_features, in_features]``.

Source: ggml-org/llama.cpp:conversion/*.py, src/models/*.cpp.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from qformats import contributions
from qformats.errors import NameTakenError
from qformats_gguf.architectures.read import read_row
from qformats_gguf.architectures.schema import Row
from qformats_gguf.hookspecs import qformats_gguf_register_architectures

__all__ = ["ROWS"]

_TABLE = Path(__file__).parent / "table"


class _Table(Mapping[str, Row]):
    """Rows by the names of their files; the files are read when the first row is asked for."""

    @cached_property
    def _rows(self) -> dict[str, Row]:
        rows: dict[str, Row] = {}
        owners: dict[str, str] = {}
        for owner, files in contributions(qformats_gguf_register_architectures.__name__):
            for file in _listed(owner, files):
                try:
                    row = _read(file, owner)
                    if file.parent != _TABLE:
                        _refuse_taken(row, owner, rows, owners)
                except ValueError as error:
                    if file.parent == _TABLE:
                        raise
                    # One that is wrong must not take the others down.
                    warnings.warn(str(error), UserWarning, stacklevel=2)
                    continue
                rows[row.name], owners[row.name] = row, owner
        return rows

    def __getitem__(self, name: str) -> Row:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


ROWS: Mapping[str, Row] = _Table()
"""Rows by name. One architecture may have several, of which ``tells`` says which one a file is read as."""


def _listed(owner: str, files: Any) -> list[Path]:
    """Files that a plugin names; none, with a warning, if it returned something else."""
    if isinstance(files, list) and all(isinstance(file, Path) for file in files):
        return files
    hook = qformats_gguf_register_architectures.__name__
    warnings.warn(f"{owner}: {hook} returned {files!r}, expected a list of paths", UserWarning, stacklevel=2)
    return []


def _read(file: Path, owner: str) -> Row:
    try:
        return read_row(file)
    except (KeyError, TypeError, ValueError, OSError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{owner}: the architecture in {file} was left out: {what}") from error


def _refuse_taken(row: Row, owner: str, rows: Mapping[str, Row], owners: Mapping[str, str]) -> None:
    """Raise `NameTakenError` if a file that was read before is named alike, or means the same models or files."""
    if row.name in rows:
        raise NameTakenError("architecture file", row.name, owners[row.name], owner)
    for other in rows.values():
        both = {m.model_type for m in row.models} & {m.model_type for m in other.models}
        if both and "read" not in (row.only, other.only):
            raise NameTakenError("model type", min(both), owners[other.name], owner)
        if row.arch == other.arch and not row.tells and "write" not in (row.only, other.only):
            raise NameTakenError("GGUF architecture", row.arch, owners[other.name], owner)
