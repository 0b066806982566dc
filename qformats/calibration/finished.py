"""Blocks that are quantized, on disk."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qformats.errors import CheckpointError, OutputError
from qformats.interfaces.checkpoint import Checkpoint
from qformats.interfaces.packer import PackedTensor
from qformats.interfaces.rows import cut
from qformats.interfaces.stored import StoredTensor
from qformats.registry import registry

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FinishedBlocks"]

_BETWEEN = "//"
"""Between the name of a tensor and that of its field."""


class FinishedBlocks:
    """One file per block, and what they were made from.

    Parameters
    ----------
    folder : Path
        Where to store them. Blocks of another calibration are removed.
    identity : str
        What decides the result.
    threads : int
        Threads that compute it.

    Attributes
    ----------
    threads : int
        Those that the finished blocks were computed with: the last bits of a product depend on their number, and what
        an interrupted run goes on to must not.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    """

    def __init__(self, folder: Path, identity: str, threads: int) -> None:
        self.folder = folder
        note = folder / "identity"
        try:
            known, _, number = (note.read_text() if note.is_file() else "").rpartition("\n")
            if known != identity or not number.isdecimal():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True, exist_ok=True)
                number = str(threads)
                note.write_text(f"{identity}\n{number}")
        except OSError as error:
            raise OutputError(folder, f"cannot be written ({error.strerror or error})") from error
        self.threads = int(number)

    def path(self, block: int | str) -> Path:
        """File of a block, or of a weight outside the blocks."""
        name = block if isinstance(block, str) else f"block-{block:05}"
        return self.folder / f"{name}.safetensors"

    @property
    def count(self) -> int:
        """Blocks that are finished, from the first one on."""
        block = 0
        while self.path(block).is_file():
            block += 1
        return block

    def write(
        self,
        block: int | str,
        tensors: Mapping[str, PackedTensor],
        tokens: Mapping[str, int] | None = None,
        unscaled: Mapping[str, str] | None = None,
    ) -> None:
        """Write a block, or a weight outside the blocks, to disk, all of it or nothing.

        Parameters
        ----------
        block : int or str
            Its number, or the name of the weight.
        tensors : mapping of str to PackedTensor
            By canonical name.
        tokens : mapping of str to int, optional
            Tokens that each weight of an expert saw.
        unscaled : mapping of str to str, optional
            Why the columns of a weight are not scaled.

        Raises
        ------
        OutputError
            If the disk is full or fails.
        """
        from safetensors.torch import save_file

        content = {
            f"{name}{_BETWEEN}{field}": value.contiguous().cpu()
            for name, packed in tensors.items()
            for field, value in packed.fields.items()
        }
        told = {name: [packed.format, list(packed.shape)] for name, packed in tensors.items()}
        path, partial = self.path(block), self.path(block).with_suffix(".partial")
        try:
            facts = {"tensors": told, "tokens": dict(tokens or {}), "unscaled": dict(unscaled or {})}
            save_file(content, partial, {name: json.dumps(fact) for name, fact in facts.items()})
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        except Exception as error:
            raise OutputError(path, f"cannot be written ({error})", "free some space") from error

    def tokens(self, block: int) -> dict[str, int]:
        """Tokens that each weight of an expert saw, by canonical name."""
        found: dict[str, int] = self._fact(block, "tokens")
        return found

    def unscaled(self, block: int) -> dict[str, str]:
        """Why the columns of a weight are not scaled, by canonical name."""
        found: dict[str, str] = self._fact(block, "unscaled")
        return found

    def _fact(self, block: int, name: str) -> Any:
        from safetensors import safe_open

        with safe_open(self.path(block), "pt") as file:
            return json.loads(file.metadata().get(name, "{}"))

    def read(self, block: int | str, source: Checkpoint) -> dict[str, StoredTensor]:
        """Tensors of a block, which stand for those of `source`.

        Raises
        ------
        CheckpointError
            If its file is damaged.
        """
        from safetensors import SafetensorError, safe_open

        path = self.path(block)
        try:
            with safe_open(path, "pt") as file:
                told = json.loads(file.metadata()["tensors"])
                keys = list(file.keys())
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                path, f"is damaged ({error})", hint="remove it, then export again"
            ) from error
        found = {}
        for order, (name, (format, shape)) in enumerate(told.items()):
            fields = [key.partition(_BETWEEN)[2] for key in keys if key.startswith(name + _BETWEEN)]
            stored = _stored(path, name, format, tuple(shape), fields, order)
            found[name] = replace(stored, origin=source.tensors[name].stored_packer)
        return found


def _stored(
    path: Path, name: str, format: str, shape: tuple[int, ...], fields: list[str], order: int
) -> StoredTensor:
    own = registry().packer(format)

    def load(start: int, stop: int) -> PackedTensor:
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            values: dict[str, Tensor] = {f: file.get_tensor(f"{name}{_BETWEEN}{f}") for f in fields}
        return cut(PackedTensor(own, shape, values), start, stop)

    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        nbytes = sum(file.get_tensor(f"{name}{_BETWEEN}{field}").nbytes for field in fields)
    return StoredTensor(name, shape, own, nbytes, path, load, offset=order, step=own.row_step(shape))
