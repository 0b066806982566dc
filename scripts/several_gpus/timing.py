"""Times and memory of what a user calls, on GPUs or, to try a script, on the CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["PROMPT", "device_of", "gigabytes", "reset_peaks", "seconds", "settled", "write"]

PROMPT = 512


def device_of(number: int) -> str:
    """Name of a device."""
    return f"cuda:{number}" if torch.cuda.is_available() else "cpu"


def settled() -> float:
    """The time, when all GPUs are done."""
    for number in range(torch.cuda.device_count()):
        torch.cuda.synchronize(number)
    return time.perf_counter()


def seconds(run: Callable[[], Any], repeats: int = 3) -> float:
    """Median time of a call."""
    found = []
    for _ in range(repeats):
        began = settled()
        run()
        found.append(settled() - began)
    return statistics.median(found)


def reset_peaks() -> None:
    """Begin to measure the most memory anew."""
    torch.cuda.empty_cache()
    for number in range(torch.cuda.device_count()):
        torch.cuda.reset_peak_memory_stats(number)


def gigabytes(number: int, *, most: bool = False) -> float | None:
    """What torch holds on a GPU, or the most that it has held."""
    if not torch.cuda.is_available():
        return None
    held = torch.cuda.max_memory_allocated(number) if most else torch.cuda.memory_allocated(number)
    return held / 1e9


def write(model: Any, ids: torch.Tensor, count: int) -> torch.Tensor:
    """Text of the likeliest tokens, of a fixed length."""
    settings = {"do_sample": False, "max_new_tokens": count, "eos_token_id": None, "pad_token_id": 0}
    found: torch.Tensor = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    return found
