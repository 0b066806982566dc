"""``qformats plugins``: who registered what, and who failed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

__all__ = ["plugins"]


def plugins(json: Annotated[bool, typer.Option("--json", help="List as JSON.")] = False) -> None:
    """List every plugin, also those that failed to load."""
    from qformats.cli.console import console, print_json, table
    from qformats.registry import registry

    records = registry().plugins
    if json:
        print_json([asdict(record) for record in records])
        return
    rows = table("plugin", "from", "state", "brings")
    for record in records:
        brings = [*record.formats, *(f"quantizer {q}" for q in record.quantizers)]
        brings += [f"container {name}" for name in record.loaders]
        state = "[red]failed[/red]" if record.error else "ok"
        rows.add_row(
            record.name, f"{record.distribution} {record.version}", state, record.error or ", ".join(brings)
        )
    console().print(rows)
