"""Memory that the programs of a launch share: sums of each, and counters of those that have arrived."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["counters", "shared"]

_scratch: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
"""What the programs of a launch share, by device and stream: launches of a stream follow each other."""


def shared(partial: int, counts: int, device: torch.device, stream: int) -> tuple[Tensor, Tensor]:
    """Memory for sums of programs, float32, and counters that are zero, for launches on one stream."""
    if torch.cuda.is_current_stream_capturing():
        return torch.empty(partial, dtype=torch.float32, device=device), counters(counts, device)
    found = _scratch.get((device.index, stream))
    if found is None or found[0].numel() < partial or found[1].numel() < counts:
        with torch.inference_mode(False):
            sums = torch.empty(max(partial, 1 << 18), dtype=torch.float32, device=device)
        found = _scratch[device.index, stream] = sums, counters(max(counts, 4096), device)
    return found


_POOL = 1 << 20
"""Counters of one device that captured graphs take theirs from: 4 MB."""
_eager: dict[tuple[torch.device, int], Tensor] = {}
_pools: dict[torch.device, tuple[Tensor, int]] = {}


def counters(count: int, device: torch.device) -> Tensor:
    """`count` int32 zeros, which are zero again after a launch.

    Launches of one stream follow each other and share theirs. A launch that is captured into a graph gets counters
    of its own, since graphs may run side by side; when these are used up, the graph clears some in every run.
    """
    if device.type != "cuda":
        return torch.zeros(count, dtype=torch.int32, device=device)
    if torch.cuda.is_current_stream_capturing():
        pool, used = _pools.get(device, (None, 0))
        if pool is None or used + count > _POOL:
            return torch.zeros(count, dtype=torch.int32, device=device)
        _pools[device] = (pool, used + count)
        return pool[used : used + count]
    if device not in _pools:
        _pools[device] = (torch.zeros(_POOL, dtype=torch.int32, device=device), 0)
    key = (device, torch.cuda.current_stream(device).cuda_stream)
    if key not in _eager or _eager[key].numel() < count:
        _eager[key] = torch.zeros(max(count, 4096), dtype=torch.int32, device=device)
    return _eager[key]
