"""Progress of an export."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """Receiver of progress; called from the thread that runs the export."""

    def start(self, task: str, total: int) -> None:
        """A task of `total` bytes begins."""

    def advance(self, nbytes: int) -> None:
        """`nbytes` more bytes are done."""

    def notice(self, text: str) -> None:
        """Show the user a notice."""


class Silent:
    """Shows nothing."""

    def start(self, task: str, total: int) -> None:
        """Nothing to show."""

    def advance(self, nbytes: int) -> None:
        """Nothing to show."""

    def notice(self, text: str) -> None:
        """Nothing to show."""
