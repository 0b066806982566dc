"""``python -m qformats``."""

from qformats.cli import main

main()
