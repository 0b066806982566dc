"""The table that maps Hugging Face models to GGUF architectures, tensor by tensor and key by key.

Adding an architecture is adding a file to ``table/``: data, without code; ``read.py`` says what is in one. Canonical
names are those of Transformers' model classes on disk; weights are ``[out_features, in_features]``.

Source: ggml-org/llama.cpp:conversion/*.py, src/models/*.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

from qformats_gguf.architectures.read import read_row
from qformats_gguf.architectures.schema import Row

__all__ = ["ROWS"]


class _Table(Mapping[str, Row]):
    """Rows by the names of their files; the files are read when the first row is asked for."""

    @cached_property
    def _rows(self) -> dict[str, Row]:
        files = sorted((Path(__file__).parent / "table").glob("*.toml"))
        return {file.stem: read_row(file) for file in files if file.stem != "common"}

    def __getitem__(self, name: str) -> Row:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


ROWS: Mapping[str, Row] = _Table()
"""Rows by name. One architecture may have several, of which ``tells`` says which one a file is read as."""
