"""The command line. Importing this package is cheap; each command imports what it needs when it runs."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Entry point of the ``qformats`` program."""
    import sys

    try:
        from qformats.cli.app import run

        run()
    except KeyboardInterrupt:
        # Before or after the program's own handling: while Python still imports, or a second Ctrl-C.
        print("qformats: interrupted", file=sys.stderr)
        sys.exit(130)
