"""Weights that are the same bits on every machine, whatever draws random numbers there."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

__all__ = ["write"]


def write(path: Path, shapes: Mapping[str, list[int]]) -> None:
    """Write float32 tensors of these names and shapes, numbers that float16 does not hold."""
    from safetensors.numpy import save_file

    tensors = {}
    for name, shape in shapes.items():
        # Whole numbers of a bit generator, whose stream NumPy keeps.
        drawn = np.random.PCG64(zlib.crc32(name.encode())).random_raw(int(np.prod(shape))) >> 45
        tensors[name] = (drawn.astype(np.float32) / 2**17 - 2).reshape(shape)
    save_file(tensors, path, {"format": "pt"})
