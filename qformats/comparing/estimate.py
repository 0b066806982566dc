"""A measured number and how well it is known."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Estimate"]


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error, both in the unit of what is measured."""

    value: float
    error: float
