"""An option of a loader or a quantizer."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Option"]


@dataclass(frozen=True)
class Option:
    """An option that a loader or a quantizer understands."""

    name: str
    help: str
