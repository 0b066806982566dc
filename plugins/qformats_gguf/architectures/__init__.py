"""Hugging Face models as GGUF architectures: tensor names, row orders, metadata, in both directions.

The knowledge is in the table of ``rows.py``; the other modules read it.
"""

from __future__ import annotations

from qformats_gguf.architectures.architecture import Architecture, size_label, supported_models
from qformats_gguf.architectures.schema import Permute, Piece, Problem, Regroup, TensorMapping

__all__ = [
    "Architecture",
    "Permute",
    "Piece",
    "Problem",
    "Regroup",
    "TensorMapping",
    "size_label",
    "supported_models",
]
