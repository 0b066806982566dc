"""How much memory there is, and how much is used."""

from __future__ import annotations

from pathlib import Path

import torch

__all__ = ["cache_room", "process_nbytes"]

_UNKNOWN = 1 << 30


def cache_room(device: torch.device) -> int:
    """Bytes that keys and values may take: half of what is free now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free // 2
    available = _line("/proc/meminfo", "MemAvailable")
    return available // 2 if available else _UNKNOWN


def process_nbytes(device: torch.device) -> int:
    """Bytes that torch holds on a GPU, or this process on a CPU; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _line("/proc/self/status", "VmRSS")


def _line(file: str, key: str) -> int:
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)
