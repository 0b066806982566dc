"""Whether a device is there, in milliseconds: torch, which knows it better, takes seconds to import."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

__all__ = ["require_device"]

_DEVICE = re.compile(r"cpu(?::0)?|cuda(?::(\d+))?")
_AMD = Path("/dev/kfd")
"""There with AMD's GPUs, which torch calls cuda too."""


def require_device(device: str | None, option: str = "--device") -> None:
    """Refuse a device that this machine does not have.

    Parameters
    ----------
    device : str or None
        As the user writes it; None is any.
    option : str
        Where it was given.

    Raises
    ------
    ConfigError
        If it is neither the CPU nor one of the GPUs that the driver shows to this process.
    """
    from qformats.errors import ConfigError

    if device is None:
        return
    found = _DEVICE.fullmatch(device)
    if found is None:
        raise ConfigError(option, device, "cpu, cuda, or one of several GPUs such as cuda:1")
    if device.startswith("cpu") or _AMD.exists():
        return
    count, why = _gpus()
    if not count:
        raise ConfigError(option, device, f"cpu, since {why}", f"leave out {option} to use the CPU")
    if int(found[1] or 0) >= count:
        named = ", ".join(f"cuda:{number}" for number in range(count))
        raise ConfigError(option, device, f"cpu or one of this machine's GPUs: {named}")


def _gpus() -> tuple[int, str]:
    """GPUs that CUDA's driver shows to this process, and why there are none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0, "this machine has no NVIDIA driver (libcuda.so.1)"
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0, "the NVIDIA driver finds no GPU that this process may use"
    return count.value, "the NVIDIA driver finds no GPU"
