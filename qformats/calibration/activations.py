"""Inputs of a block, between two blocks and within one: on the device, in memory, the rest on disk."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qformats.errors import OutputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Activations", "Kept", "Memory", "device_room"]

_MATRICES = 8
"""Matrices of the inputs' moments, and as large ones, that are on a device at a time while a layer is solved."""
_BLOCKS = 4
"""Blocks: as they are quantized, the unquantized one, one of float32 working copies."""
_REST = 2 * 10**9
"""Bytes for what a batch needs while it runs."""


def device_room(device: torch.device, *, columns: int, block_nbytes: int) -> int:
    """Bytes of a device that hidden states may take: what is free beside a block at work, at most half of it.

    Parameters
    ----------
    device : torch.device
        Where the model runs.
    columns : int
        Inputs of the widest layer that is quantized.
    block_nbytes : int
        Bytes of the weights of a block, as they run.
    """
    if device.type != "cuda":
        return 0
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    needed = _MATRICES * 4 * columns**2 + _BLOCKS * block_nbytes + _REST
    return max(0, min(free // 2, free - needed))


@dataclass
class Memory:
    """Limits that several holders of tensors share.

    Attributes
    ----------
    limit : int
        Bytes of the machine's memory.
    device_limit : int
        Bytes of the device where tensors are computed; 0 to keep all of them in the machine's.
    used, device_used : int
        Bytes that are taken of both.
    """

    limit: int
    device_limit: int = 0
    used: int = 0
    device_used: int = 0

    def keep(self, values: Tensor) -> Tensor | None:
        """Reserve memory for a tensor and give it as it is kept; ``None`` if there is no room for it."""
        values = values.detach()
        if values.device.type != "cpu" and self.device_used + values.nbytes <= self.device_limit:
            self.device_used += values.nbytes
            kept = values.contiguous()
            # A part of a tensor would keep the whole of it.
            return kept.clone() if kept.untyped_storage().nbytes() > kept.nbytes else kept
        if self.used + values.nbytes > self.limit:
            return None
        self.used += values.nbytes
        return values.cpu().contiguous()

    def free(self, values: Tensor) -> None:
        """Give back what was reserved for a tensor that :meth:`keep` gave."""
        if values.device.type == "cpu":
            self.used -= values.nbytes
        else:
            self.device_used -= values.nbytes


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
        if index in self._kept:
            self._memory.free(self._kept.pop(index))
        kept = self._memory.keep(values)
        if kept is None:
            return False
        self._kept[index] = kept
        return True

    def get(self, index: int) -> Tensor | None:
        """Tensor of a batch, on its device or on the CPU; ``None`` if it is not kept."""
        return self._kept.get(index)

    def clear(self) -> None:
        """Forget all."""
        for values in self._kept.values():
            self._memory.free(values)
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
        """Batch of this index, on its device or on the CPU."""
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
