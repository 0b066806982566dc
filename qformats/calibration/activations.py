"""Inputs of a block, between two blocks and within one: in memory up to a limit, the rest on disk."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qformats.errors import OutputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Activations", "Kept", "Memory"]


@dataclass
class Memory:
    """A limit that several holders of tensors share.

    Attributes
    ----------
    limit : int
        Bytes.
    used : int
        Bytes that are taken.
    """

    limit: int
    used: int = 0

    def reserve(self, nbytes: int) -> bool:
        """Reserve memory; ``False`` if not enough is left."""
        if self.used + nbytes > self.limit:
            return False
        self.used += nbytes
        return True


class Kept:
    """Tensors by batch that need not be computed again: as many as there is memory for.

    Parameters
    ----------
    memory : Memory
        Memory that they may take.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._kept: dict[int, Tensor] = {}

    def put(self, index: int, values: Tensor) -> bool:
        """Keep a tensor, in place of the one with the same index; ``False`` if there is no memory for it."""
        values = values.detach().cpu().contiguous()
        if index in self._kept:
            self._memory.used -= self._kept.pop(index).nbytes
        if not self._memory.reserve(values.nbytes):
            return False
        self._kept[index] = values
        return True

    def get(self, index: int) -> Tensor | None:
        """Tensor of a batch, on the CPU; ``None`` if it is not kept."""
        return self._kept.get(index)

    def clear(self) -> None:
        """Forget all."""
        self._memory.used -= sum(values.nbytes for values in self._kept.values())
        self._kept.clear()


class Activations:
    """Hidden states of the calibration text: one tensor per batch, each replaced by the output of the next block.

    Parameters
    ----------
    folder : Path
        Where batches are spilled.
    memory : Memory
        Memory that the others may take.
    """

    def __init__(self, folder: Path, memory: Memory) -> None:
        self._folder, self._kept = folder, Kept(memory)
        self._spilled: dict[int, Tensor] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def spilled(self) -> int:
        """Batches that are on disk."""
        return len(self._spilled)

    def put(self, index: int, states: Tensor) -> None:
        """Keep a batch in place of the one with the same index.

        Raises
        ------
        OutputError
            If the disk is full or fails.
        """
        self._count = max(self._count, index + 1)
        if index not in self._spilled and self._kept.put(index, states):
            return
        import torch

        states = states.detach().cpu().contiguous()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            states.view(torch.uint8).numpy().tofile(self._file(index))
        except OSError as error:
            found = f"hidden states cannot be written to disk ({error.strerror or error})"
            hint = "free some space, or take fewer samples"
            raise OutputError(self._folder, found, hint) from error
        self._spilled[index] = states.new_empty(states.shape, device="meta")

    def get(self, index: int) -> Tensor:
        """Batch of this index, on the CPU."""
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        import numpy as np
        import torch

        like = self._spilled[index]
        raw = torch.from_numpy(np.fromfile(self._file(index), np.uint8))
        return raw.view(like.dtype).view(like.shape)

    def _file(self, index: int) -> Path:
        return self._folder / f"batch-{index:05}.bin"

    def clear(self) -> None:
        """Forget all batches, and remove what was spilled."""
        for index in self._spilled:
            self._file(index).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._folder.rmdir()
        self._kept.clear()
        self._spilled, self._count = {}, 0
