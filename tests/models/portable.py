"""What is the same on every machine: weights, whatever draws random numbers there, and short forms of long values."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["short", "write"]


def write(path: Path, shapes: Mapping[str, list[int]]) -> None:
    """Write float32 tensors of these names and shapes, numbers that float16 does not hold."""
    from safetensors.numpy import save_file

    tensors = {}
    for name, shape in shapes.items():
        # Whole numbers of a bit generator, whose stream NumPy keeps.
        drawn = np.random.PCG64(zlib.crc32(name.encode())).random_raw(int(np.prod(shape))) >> 45
        tensors[name] = (drawn.astype(np.float32) / 2**17 - 2).reshape(shape)
    save_file(tensors, path, {"format": "pt"})


def short(value: Any) -> Any:
    """A metadata value, or a hash of a long table of bytes."""
    if isinstance(value, list) and len(value) > 65536 and isinstance(value[0], int):
        return hashlib.sha256(bytes(value)).hexdigest()
    return value
