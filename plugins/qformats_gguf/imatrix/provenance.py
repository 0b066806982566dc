"""What a quantized file says about the importance matrix that weighed its errors."""

from __future__ import annotations

from qformats.interfaces import Importance
from qformats_gguf.metadata import Metadata, string, u32

__all__ = ["provenance"]

_LONGEST = 127
"""Bytes of a string: llama-quantize keeps them in 128, the terminator included."""


def provenance(importance: Importance) -> Metadata:
    """Keys as llama-quantize writes them: the first file and data set, and numbers as u32 (i32 before 2025-06).

    Examples
    --------
    >>> from qformats.interfaces import Importance
    >>> sorted(provenance(Importance({}, ("imatrix.gguf",), chunks=4)))
    ['quantize.imatrix.chunks_count', 'quantize.imatrix.entries_count', 'quantize.imatrix.file']
    """
    metadata: Metadata = {}
    for key, texts in (("file", importance.files), ("dataset", importance.datasets)):
        if texts:
            metadata[f"quantize.imatrix.{key}"] = string(_cut(texts[0]))
    metadata["quantize.imatrix.entries_count"] = u32(importance.entries)
    if importance.chunks:
        metadata["quantize.imatrix.chunks_count"] = u32(importance.chunks)
    return metadata


def _cut(text: str) -> str:
    raw = text.encode("utf-8", "surrogateescape")[:_LONGEST]
    return raw.decode("utf-8", "ignore")
