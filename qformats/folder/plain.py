"""Plain tensors of a shard."""

from __future__ import annotations

import math

from qformats.folder.shards import Shard
from qformats.interfaces.dense import dense
from qformats.interfaces.packer import PackedTensor
from qformats.interfaces.stored import StoredTensor
from qformats.numbers.dtypes import SIZES

__all__ = ["plain_tensor"]


def plain_tensor(name: str, shape: tuple[int, ...], dtype: str, shard: Shard, order: int) -> StoredTensor:
    """A tensor of plain numbers, read when asked for.

    Parameters
    ----------
    order : int
        Its place in the files.
    """
    packer = dense(dtype)

    def load(start: int, stop: int) -> PackedTensor:
        values = shard.tensor(name)
        part = values[start:stop] if shape else values
        return PackedTensor(packer, tuple(part.shape), {"weight": part})

    return StoredTensor(name, shape, packer, math.prod(shape) * SIZES[dtype], shard.path, load, offset=order)
