"""A model in one GGUF file or in several: finding the parts, and checking that they belong together.

Source: llama.cpp:src/llama-model-loader.cpp, ggml-org/llama.cpp@0c1e570.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from qformats.errors import CheckpointError
from qformats.work.files import refuse_link_out

from .metadata import Keys, Metadata
from .reader import GGUFFile, StoredTensor, read

__all__ = ["GGUFModel", "open_model"]

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


class GGUFModel:
    """A model in one GGUF file or in several. Made by :func:`open_model`.

    Attributes
    ----------
    path : Path
        The first file.
    files : list of GGUFFile
        All files, in order.
    metadata : Metadata
        Of the first file, which holds the model's; without the ``split.*`` keys, which a single file must
        not have.
    tensors : dict of str to StoredTensor
        Of all files.
    """

    def __init__(self, files: Iterable[GGUFFile]) -> None:
        self.files = list(files)
        self.path = self.files[0].path
        self.metadata: Metadata = {
            key: value for key, value in self.files[0].metadata.items() if not key.startswith("split.")
        }
        self.tensors: dict[str, StoredTensor] = {}
        self._owners: dict[str, GGUFFile] = {}
        for file in self.files:
            for name, tensor in file.tensors.items():
                if name in self.tensors:
                    raise CheckpointError(
                        file.path,
                        f"is also in {self._owners[name].path.name}",
                        "every tensor in one part of the model",
                        tensor=name,
                    )
                self.tensors[name], self._owners[name] = tensor, file

    def file_of(self, name: str) -> GGUFFile:
        """File that holds the tensor `name`; its offset counts from this file's start."""
        return self._owners[name]

    def data(self, tensor: StoredTensor | str) -> np.ndarray:
        """Return the stored bytes of a tensor, without copying; see :meth:`GGUFFile.data`."""
        name = tensor if isinstance(tensor, str) else tensor.name
        return self._owners[name].data(name)

    def close(self) -> None:
        """Close all files."""
        for file in self.files:
            file.close()

    def __enter__(self) -> GGUFModel:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_model(path: str | os.PathLike[str]) -> GGUFModel:
    """Open a model, whichever of its parts `path` names; the others are found by name beside it.

    Raises
    ------
    ModelNotFoundError
        If there is no such file.
    CheckpointError
        As :func:`read`; or if parts are missing, do not belong together, or do not hold all tensors.
    """
    with contextlib.ExitStack() as opened:
        given = opened.enter_context(read(path))
        paths = _parts(given)
        files = []
        for index, part in enumerate(paths):
            file = given if part == given.path else opened.enter_context(read(part))
            if len(paths) > 1:
                _check_part(file, index, len(paths))
            files.append(file)
        model = GGUFModel(files)
        if len(paths) > 1:
            _check_total(files[0], len(model.tensors), len(paths))
        opened.pop_all()
    return model


def _split_key(file: GGUFFile, key: str) -> int | None:
    return Keys(file.metadata, str(file.path)).integer(key, None)


def _parts(file: GGUFFile) -> list[Path]:
    """Paths of all parts of the model that `file` is a part of."""
    count, number = _split_key(file, "split.count") or 0, _split_key(file, "split.no") or 0
    if count <= 1:
        return [file.path]
    match = _SHARD.fullmatch(file.path.name)
    if match is None or (int(match[2]) - 1, int(match[3])) != (number, count):
        if number == 0 and _split_key(file, "split.tensors.count") == len(file.tensors):
            # Merged by a tool that left the keys behind: nothing is missing.
            return [file.path]
        raise CheckpointError(
            file.path,
            f"says it is part {number + 1} of {count}",
            f"a file name that ends in -{number + 1:05d}-of-{count:05d}.gguf",
            hint="give the parts their original names: that is how they are found",
        )
    paths = [file.path.with_name(f"{match[1]}-{i + 1:05d}-of-{count:05d}.gguf") for i in range(count)]
    for path in paths:
        refuse_link_out(path, file.path)
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise CheckpointError(
            file.path,
            f"is part {number + 1} of {count}, and {listed} {'is' if len(missing) == 1 else 'are'} missing",
            "all parts in one folder",
            hint="download the missing parts",
        )
    return paths


def _check_part(file: GGUFFile, index: int, count: int) -> None:
    for key, expected in (("split.no", index), ("split.count", count)):
        found = _split_key(file, key)
        if found != expected:
            raise CheckpointError(
                file.path,
                f"has no {key}" if found is None else f"has {key} = {found}",
                f"{key} = {expected}, as in its name and in the other parts",
                hint="download the parts of one model again",
            )


def _check_total(first: GGUFFile, found: int, count: int) -> None:
    total = _split_key(first, "split.tensors.count")
    if total != found:
        raise CheckpointError(
            first.path,
            f"its {count} parts hold {found} tensors",
            "the key split.tensors.count" if total is None else f"{total} (split.tensors.count)",
            hint="a part belongs to another model, or is incomplete: download the parts again",
        )
