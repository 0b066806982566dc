"""Several files in one input: a line of JSON with names and sizes, then their bytes one after the other."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

__all__ = ["pack", "place", "unpack"]


def pack(files: Mapping[str, bytes]) -> bytes:
    """One input of files."""
    head = json.dumps([[name, len(data)] for name, data in files.items()], separators=(",", ":"))
    return b"".join([head.encode(), b"\n", *files.values()])


@lru_cache(maxsize=512)
def _unpacked(data: bytes) -> tuple[tuple[str, bytes], ...]:
    head, _, body = data.partition(b"\n")
    found, at = [], 0
    for name, size in json.loads(head):
        found.append((name, body[at : at + size]))
        at += size
    return tuple(found)


def unpack(data: bytes) -> dict[str, bytes]:
    """Its files."""
    return dict(_unpacked(data))


def place(files: Mapping[str, bytes], folder: Path, before: set[str]) -> set[str]:
    """Write files into a folder that holds those of the input before; gives their names.

    Each is a new file: something may still have the old one mapped.
    """
    root = os.fspath(folder)
    for name in before:
        try:
            os.unlink(f"{root}/{name}")
        except FileNotFoundError:
            continue
        except IsADirectoryError:
            shutil.rmtree(f"{root}/{name}")
    for name, data in files.items():
        if "/" in name:
            os.makedirs(os.path.dirname(f"{root}/{name}"), exist_ok=True)
        handle = os.open(f"{root}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            os.write(handle, data)
        finally:
            os.close(handle)
    return set(files)
