"""Returning freed memory to the system."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

__all__ = ["return_freed"]


def return_freed() -> None:
    """Return unused pages to the system; only glibc keeps so many that it must be asked.

    After the first large tensors glibc takes tensors of up to 32 MB from its heaps. These shrink only at their ends, so
    that a few small objects between tensors keep gigabytes of them.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        found: Any = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        # Another C library.
        return None
    found.argtypes = [ctypes.c_size_t]
    trim: Callable[[int], int] = found
    return trim
