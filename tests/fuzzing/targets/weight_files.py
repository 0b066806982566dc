"""Weight files of folders: safetensors, their index, and the archives and pickles of torch."""

from __future__ import annotations

from pathlib import Path

from qformats.folder.shards import BinShard, SafetensorsShard, Shard

from .gguf_files import read_model
from .target import Target, each

__all__ = ["TARGETS"]


def _shard(shard: Shard) -> None:
    names = [name for name, shape, dtype in shard.entries() if len(shape) >= 0 and dtype]
    each(
        *((lambda name=name: shard.tensor(name).sum()) for name in names),
        *((lambda name=name: shard.content(name)) for name in names[:3]),
    )


def _safetensors(folder: Path) -> None:
    _shard(SafetensorsShard(folder / "model.safetensors"))


def _bin(folder: Path) -> None:
    try:
        _shard(BinShard(folder / "pytorch_model.bin"))
    finally:
        # Nothing of this file is to be found again at the next one.
        BinShard._resident = None


TARGETS = (
    Target("safetensors", _safetensors, file="model.safetensors"),
    Target("index", read_model, weights={".index.json": 8, ".safetensors": 1, "config.json": 1}, heavy=True),
    Target("bin", _bin, file="pytorch_model.bin"),
    Target("bin-folder", read_model, weights={".bin": 3, ".index.json": 3, "config.json": 1}, heavy=True),
)
