"""Checks of formats: each a function of a packer."""

from __future__ import annotations

__all__: list[str] = []
