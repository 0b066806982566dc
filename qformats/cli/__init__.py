"""The command line. Importing this package is cheap; each command imports what it needs when it runs."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Entry point of the ``qformats`` program."""
    from qformats.cli.app import run

    run()
