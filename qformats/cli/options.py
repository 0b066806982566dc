"""Options that several commands have, spelled once."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = [
    "CheckExact",
    "DryRun",
    "Force",
    "Json",
    "KeepPartial",
    "LoaderOptions",
    "RequireExact",
    "Workers",
]

LoaderOptions = Annotated[
    list[str] | None,
    typer.Option("--option", "-O", metavar="NAME=VALUE", help="Any other option of a loader."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing target.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan with exact sizes; write nothing.")]
CheckExact = Annotated[
    bool, typer.Option("--check-exact", help="Read the model once and tell which tensors stay unchanged.")
]
RequireExact = Annotated[
    bool, typer.Option("--require-exact", help="Fail before writing if a value would change.")
]
KeepPartial = Annotated[
    bool, typer.Option("--keep-partial", help="When interrupted, keep what is written, to go on later.")
]
Workers = Annotated[int | None, typer.Option("--workers", "-j", min=1, help="Threads; all cores by default.")]
Json = Annotated[bool, typer.Option("--json", help="Report as JSON.")]
