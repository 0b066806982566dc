"""An option of a loader or a quantizer."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Option"]


@dataclass(frozen=True)
class Option:
    """An option that a loader or a quantizer understands.

    Attributes
    ----------
    name, help : str
        How users write it, and what it does.
    decides : bool
        Whether it decides the result. Interrupted work is found again although others have changed.
    """

    name: str
    help: str
    decides: bool = True
