"""Checks of loaders: each a function of a loader, and of the model that it is to write."""

from __future__ import annotations

__all__: list[str] = []
