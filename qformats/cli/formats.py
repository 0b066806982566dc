"""``qformats formats``: what can be read and written."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["formats"]


def formats(json: Annotated[bool, typer.Option("--json", help="List as JSON.")] = False) -> None:
    """List every installed format, quantizer and container."""
    from qformats.cli.console import console, print_json, table
    from qformats.registry import registry

    known = registry()
    rows = [
        {
            "name": packer.name,
            "summary": packer.spec.summary,
            "bits_per_weight": packer.spec.bits_per_weight,
            "block_size": packer.spec.block_size,
            "write": packer.writable,
            "level": packer.spec.level,
            "container": packer.container,
            "default": packer.spec.variant == packer.default_variant,
        }
        for packer in known.formats()
    ]
    quantizers = [
        {"name": name, "summary": known.quantizer(name).summary} for name in known.quantizer_names()
    ]
    loaders = [{"name": loader.name, "summary": loader.summary} for loader in known.loaders()]
    if json:
        failures = known.failures
        print_json(
            {"formats": rows, "quantizers": quantizers, "containers": loaders, "failed_plugins": failures}
        )
        return
    out = console()
    shown = table(
        "format", "bits a weight", "block", "use", "level", "", right=("bits a weight", "block", "level")
    )
    for row in rows:
        name = f"{row['name']}{' (default)' if row['default'] else ''}"
        block = str(row["block_size"]) if row["block_size"] else "row"
        use = "read, write" if row["write"] else "read"
        shown.add_row(
            name, f"{row['bits_per_weight']:.4g}", block, use, str(row["level"]), str(row["summary"])
        )
    out.print(shown)
    for title, items in (("quantizers", quantizers), ("containers", loaders)):
        out.print(
            f"[bold]{title}[/bold]  " + "; ".join(f"{item['name']}: {item['summary']}" for item in items)
        )
    out.print(
        "level 0: can be dequantized; 1: has a canonical form, so it can be quantized into and transcoded; "
        "2: also runs on the shared GPU kernel"
    )
