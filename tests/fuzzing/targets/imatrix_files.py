"""Importance matrices: in GGUF, and in the older binary form."""

from __future__ import annotations

from pathlib import Path
from random import Random

from fuzzing.mutators import blobs, gguf

from qformats.exporting.importance import read_importance

from .target import Target

__all__ = ["TARGETS"]


def _imatrix(folder: Path) -> None:
    read_importance([folder / "imatrix.dat"], None)


def _change(rng: Random, data: bytes) -> bytes:
    return (gguf if data[:4] == b"GGUF" else blobs).change(rng, data)


TARGETS = (Target("imatrix", _imatrix, file="imatrix.dat", change=_change),)
