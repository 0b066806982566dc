"""Inputs on disk: seeds and what once was a fault, both compressed, and the corpus of a run."""

from __future__ import annotations

import hashlib
import lzma
from pathlib import Path

__all__ = ["REGRESSIONS", "SEEDS", "load", "read", "write", "write_plain"]

SEEDS = Path(__file__).parent / "seeds"
REGRESSIONS = Path(__file__).parent / "regressions"


def read(file: Path) -> bytes:
    """One input."""
    data = file.read_bytes()
    return lzma.decompress(data) if file.suffix == ".xz" else data


def write(folder: Path, data: bytes, label: str) -> Path:
    """Keep an input under a name of its content."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{label}-{hashlib.sha256(data).hexdigest()[:12]}.xz"
    file.write_bytes(lzma.compress(data, preset=2))
    return file


def load(*folders: Path) -> list[bytes]:
    """All inputs of folders, in the order of their names."""
    files = [
        file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir()) if file.is_file()
    ]
    return list(dict.fromkeys(map(read, files)))


def write_plain(folder: Path, data: bytes) -> Path:
    """Keep an input as libFuzzer does: its bytes, under the name of its content."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / hashlib.sha1(data, usedforsecurity=False).hexdigest()
    file.write_bytes(data)
    return file
