"""``qformats new-plugin``: a plugin to begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["new_plugin"]


def new_plugin(
    name: Annotated[
        str, typer.Argument(help="What the plugin and its family of formats are called, such as my-format.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder to make; qformats-NAME by default."),
    ] = None,
) -> None:
    """Write a plugin with a format, packaging and tests, which works as it is.

    qformats new-plugin my-format
    """
    from qformats.testing.new_plugin import write_plugin

    folder = write_plugin(name, output)
    print(f"{folder} is a plugin with the format {name}:int4. Install and check it:")
    print(f"  pip install -e '{folder}[test]'")
    print(f"  qformats check {name}")
    print(f"  pytest {folder}")
