"""``qformats formats``: what can be read and written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from qformats.registry import Registry

__all__ = ["formats"]


def formats(json: Annotated[bool, typer.Option("--json", help="List as JSON.")] = False) -> None:
    """List every installed format, quantizer and container."""
    from qformats.cli.console import print_json
    from qformats.registry import registry

    facts = _facts(registry())
    if json:
        print_json(facts)
    else:
        _print(facts)


def _facts(known: Registry) -> dict[str, Any]:
    return {
        "formats": [
            {
                "name": packer.name,
                "summary": packer.spec.summary,
                "bits_per_weight": packer.spec.bits_per_weight,
                "block_size": packer.spec.block_size,
                "write": packer.writable,
                "level": packer.spec.level,
                "container": packer.container,
                "default": packer.spec.variant == known.family(packer).default_variant,
            }
            for packer in known.formats()
        ],
        "quantizers": [
            {"name": name, "summary": known.quantizer(name).summary} for name in known.quantizer_names()
        ],
        "containers": [{"name": loader.name, "summary": loader.summary} for loader in known.loaders()],
        "failed_plugins": known.failures,
    }


def _print(facts: dict[str, Any]) -> None:
    from qformats.cli.console import console, plain, table

    out = console()
    shown = table("format", "bits", "block", "level", "", right=("bits", "block", "level"))
    for row in facts["formats"]:
        if row["write"]:
            name = row["name"] + (" *" if row["default"] else "")
            block = str(row["block_size"] or "row")
            shown.add_row(
                name, f"{row['bits_per_weight']:.4g}", block, str(row["level"]), plain(row["summary"])
            )
    out.print(shown)
    out.print("\n* default of its family; bits: bits per weight, scales included")
    out.print("level 0: stored and decoded; 1: can be quantized into; 2: also runs on the shared GPU kernel")
    read_only = [row for row in facts["formats"] if not row["write"]]
    for family in dict.fromkeys(row["name"].partition(":")[0] for row in read_only):
        out.print(f"\n[bold]{family}, read only[/bold] (bits per weight)")
        out.print(_listed([row for row in read_only if row["name"].startswith(f"{family}:")]))
    for title in ("quantizers", "containers"):
        out.print(f"\n[bold]{title}[/bold]")
        names = table("", "")
        for item in facts[title]:
            names.add_row(item["name"], plain(item["summary"]))
        out.print(names)
    for plugin, reason in facts["failed_plugins"].items():
        out.print(f"\n[red]failed to load[/red]: {plain(plugin)}: {plain(reason)}")


def _listed(rows: Sequence[dict[str, Any]]) -> str:
    # The no-break space keeps a name and its number on one line.
    return ", ".join(f"{row['name'].partition(':')[2]}\u00a0{row['bits_per_weight']:.4g}" for row in rows)
