"""GGUF: the container alone, a whole model, and a split one."""

from __future__ import annotations

from pathlib import Path

import qformats
from qformats_gguf.metadata import Keys
from qformats_gguf.reader import read

from .target import Target, each

__all__ = ["TARGETS", "read_model"]


def _container(folder: Path) -> None:
    """Header, metadata and the place of every tensor; most executions a second of all."""
    with read(folder / "model.gguf") as file:
        keys = Keys(file.metadata, str(file.path))
        for key in file.metadata:
            keys.get(key)
        for tensor in file.tensors.values():
            # Both ends of the data are in the file.
            stored = file.data(tensor)
            assert stored.size == tensor.nbytes
            assert stored.size == 0 or int(stored[0]) + int(stored[-1]) >= 0


def read_model(path: Path) -> None:
    """Everything that opening a model offers, and every tensor as numbers."""
    model = qformats.open(path)

    def metadata() -> None:
        assert isinstance(str(model.metadata), str)

    each(
        lambda: model.architecture,
        metadata,
        lambda: model.config,
        model.tokenizer_files,
        lambda: model.card,
        *((lambda name=name: model.read(name)) for name in model.tensors),
    )


def _one(folder: Path) -> None:
    read_model(folder / "model.gguf")


def _split(folder: Path) -> None:
    read_model(folder / "model-00001-of-00002.gguf")


TARGETS = (
    Target("gguf", _container, file="model.gguf"),
    Target("gguf-model", _one, file="model.gguf", heavy=True),
    Target("gguf-split", _split, heavy=True),
)
