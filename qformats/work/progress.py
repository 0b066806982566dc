"""Progress of an export."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """Receiver of progress; called from the thread that runs the export.

    Examples
    --------
    >>> from qformats.work.progress import Silent
    >>> class Told(Silent):
    ...     def start(self, task, total):
    ...         print(f"{task}: {total} bytes")
    >>> Told().start("writing", 12)
    writing: 12 bytes
    """

    def start(self, task: str, total: int) -> None:
        """A task of `total` bytes begins, and the one before is over; 0 if nothing is known of its length."""

    def advance(self, nbytes: int) -> None:
        """`nbytes` more bytes are done."""

    def notice(self, text: str) -> None:
        """Show the user a notice."""


class Silent:
    """Shows nothing.

    Examples
    --------
    >>> from qformats.work.progress import Silent
    >>> Silent().start("writing", 12)
    """

    def start(self, task: str, total: int) -> None:
        """Nothing to show."""

    def advance(self, nbytes: int) -> None:
        """Nothing to show."""

    def notice(self, text: str) -> None:
        """Nothing to show."""
