"""Which implementation of the shared kernels runs: the environment variable QFORMATS_KERNEL decides, or the device."""

from __future__ import annotations

import functools
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from qformats.errors import BackendUnavailableError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CHOICES", "uses_humming", "uses_triton"]

CHOICES = ("auto", "reference", "triton", "humming")
"""Values of QFORMATS_KERNEL."""


@functools.cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _choice() -> str:
    choice = os.environ.get("QFORMATS_KERNEL", "auto")
    if choice not in CHOICES:
        raise ConfigError("QFORMATS_KERNEL", choice, "one of " + ", ".join(CHOICES))
    return choice


def uses_humming(tensor: Tensor) -> bool:
    """Whether many rows of activations, such as this tensor has, are Humming's; see :mod:`qformats.kernels.humming`.

    Raises
    ------
    ConfigError
        If QFORMATS_KERNEL holds anything other than the values it has.
    """
    return tensor.is_cuda and _choice() == "humming"


def uses_triton(tensor: Tensor) -> bool:
    """Whether work on a tensor goes to the Triton kernels: on CUDA by default, on a CPU never by default.

    Parameters
    ----------
    tensor : Tensor
        Whatever the kernel is to work on.

    Raises
    ------
    ConfigError
        If QFORMATS_KERNEL holds anything other than the values it has.
    BackendUnavailableError
        If it asks for Triton where that cannot run.
    """
    choice = _choice()
    if choice in ("auto", "humming"):
        return tensor.is_cuda and _has_triton()
    if choice == "triton":
        if not _has_triton():
            raise BackendUnavailableError("triton", "the package is not installed", "install triton")
        if not (tensor.is_cuda or _interpreted()):
            raise BackendUnavailableError(
                "triton",
                f"tensors are on {tensor.device}",
                "move them to a CUDA device, or unset QFORMATS_KERNEL",
            )
    return choice == "triton"
