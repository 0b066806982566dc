"""Entries of an importance matrix, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from qformats.errors import CheckpointError
from qformats.interfaces import ColumnSums

__all__ = ["require_sums"]


def require_sums(
    path: Path, name: str, squares: np.ndarray[Any, Any], counts: np.ndarray[Any, Any]
) -> ColumnSums:
    """An entry, if its numbers can be sums of squares, and counts of tokens.

    Raises
    ------
    CheckpointError
        If one of them is NaN, infinite or negative.
    """
    for what, values in (("sums of squares", squares), ("counts", counts)):
        bad = int((~np.isfinite(values) | (values < 0)).sum())
        if bad:
            found = f"{bad} of {values.size} {what} are negative, infinite or NaN"
            hint = "measure the importance matrix again; a model in f16 can overflow, one in f32 does not"
            raise CheckpointError(path, found, "finite numbers from 0 on", tensor=name, hint=hint)
    return ColumnSums(squares, counts)
