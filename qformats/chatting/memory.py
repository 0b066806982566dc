"""How much memory there is, and how much is used."""

from __future__ import annotations

import torch

from qformats.work.memory import available_nbytes, told

__all__ = ["cache_room", "process_nbytes"]

_UNKNOWN = 1 << 30


def cache_room(device: torch.device) -> int:
    """Bytes that keys and values may take: half of what is free now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free // 2
    available = available_nbytes()
    return available // 2 if available else _UNKNOWN


def process_nbytes(device: torch.device) -> int:
    """Bytes that torch holds on a GPU, or this process on a CPU; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return told("/proc/self/status", "VmRSS")
