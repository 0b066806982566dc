"""The relative error of quantized weights: what it is, and how it is written, everywhere."""

from __future__ import annotations

import math

__all__ = ["percent", "relative_error"]

_SMALL = 1e-4
"""Shares below it are not told from nothing by two decimals of a per cent."""
_MUCH = 10
"""Shares above it are powers of ten: decimals say nothing."""


def relative_error(squared_error: float, squared: float) -> float:
    """Frobenius norm of a difference over that of the reference: ``sqrt(sum (y - x)² / sum x²)``.

    Of several tensors together it follows from their sums, never from a mean of their relative errors.

    Parameters
    ----------
    squared_error, squared : float
        Sums over all weights, or means: of the squared difference, and of the squared reference.

    Returns
    -------
    float
        0 for equal weights, infinite where the reference is all zero and the weights are not.

    Examples
    --------
    >>> from qformats.numbers.error import relative_error
    >>> relative_error(0.09, 9.0), relative_error(0.0, 0.0), relative_error(1.0, 0.0)
    (0.1, 0.0, inf)
    """
    if squared_error <= 0:
        return 0.0
    return math.sqrt(squared_error / squared) if squared > 0 else math.inf


def percent(share: float) -> str:
    """A relative error as it is shown: two decimals of a per cent, two digits where those would say nothing.

    Examples
    --------
    >>> from qformats.numbers.error import percent
    >>> percent(0.0843), percent(2.1e-5), percent(0.0), percent(2.3e23), percent(float("inf"))
    ('8.43%', '0.0021%', '0%', '2e+25%', '-')
    """
    if not math.isfinite(share):
        return "-"
    if not share:
        return "0%"
    if share > _MUCH:
        return f"{100 * share:.0e}%"
    return f"{share:.2%}" if share >= _SMALL else f"{100 * share:.2g}%"
