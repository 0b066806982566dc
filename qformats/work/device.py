"""Where a model runs."""

from __future__ import annotations

import torch

from qformats.errors import ConfigError

__all__ = ["chosen_device"]


def chosen_device(device: str | torch.device | None) -> torch.device:
    """The requested device; by default a GPU if there is one.

    Raises
    ------
    ConfigError
        If it is neither the CPU nor an available CUDA device.
    """
    count = torch.cuda.device_count()
    if device is None:
        return torch.device("cuda" if count else "cpu")
    here = (
        f"cpu or one of the {count} CUDA devices that torch finds"
        if count
        else "cpu, since torch finds no GPU"
    )
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError("device", str(device), here) from error
    number = found.index or 0
    if (found.type, number) != ("cpu", 0) and not (found.type == "cuda" and number < count):
        raise ConfigError("device", str(device), here)
    return found
