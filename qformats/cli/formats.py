"""``qformats formats``: what can be read and written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qformats.cli import completing
from qformats.cli.commands import Json, meant

if TYPE_CHECKING:
    from qformats.interfaces import Packer
    from qformats.registry import Registry

__all__ = ["formats"]

_LEVELS = ("stored and decoded", "can be quantized into", "also runs on the shared GPU kernel")
"""What each level of support means."""


def formats(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="Only these families or formats.",
            autocompletion=completing.formats,
        ),
    ] = None,
    json: Json = None,
) -> None:
    """List every installed format, quantizer and container; or families, or single formats in full.

    qformats formats gguf
    """
    from qformats.cli.reporting import as_json
    from qformats.registry import registry

    known = registry()
    chosen = [packer for name in names or () for packer in _named(known, name)]
    facts = _facts(known, list({packer.name: packer for packer in chosen}.values()) if names else None)
    if as_json(facts, json):
        return
    if len(facts["formats"]) == 1 and not facts["mixtures"]:
        _print_one(facts["formats"][0], chosen[0])
    else:
        _print(facts)


def _named(known: Registry, name: str) -> list[Packer]:
    """Formats of a family, under any of its names, or the one format that a name stands for."""
    import difflib

    from qformats.errors import UnknownFormatError

    for family in known.families():
        if name.lower() in (family.name, *family.other_names):
            return [*(family.parse(variant) for variant in family.variants()), *family.mixtures]
    try:
        return [meant(name)]
    except UnknownFormatError as error:
        words = {
            word: family.name for family in known.families() for word in (family.name, *family.other_names)
        }
        close = difflib.get_close_matches(name.lower(), words, n=1)
        if ":" in name or not close:
            raise
        installed = sorted({family.name for family in known.families()})
        raise UnknownFormatError(
            name, installed, known.failures, kind="family or format", nearest=[words[close[0]]]
        ) from error


def _facts(known: Registry, chosen: Sequence[Packer] | None) -> dict[str, Any]:
    """All of them, or only the chosen formats."""
    facts: dict[str, Any] = {
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
            for packer in (known.formats() if chosen is None else chosen)
            if packer.typical is packer
        ],
        "mixtures": [
            {"name": packer.name, "summary": packer.spec.summary, "typical": packer.typical.name}
            for packer in (chosen or (each for family in known.families() for each in family.mixtures))
            if packer.typical is not packer
        ],
    }
    if chosen is not None:
        return facts
    return facts | {
        "quantizers": [
            {"name": name, "summary": known.quantizer(name).summary} for name in known.quantizer_names()
        ],
        "containers": [{"name": loader.name, "summary": loader.summary} for loader in known.loaders()],
        "failed_plugins": known.failures,
    }


def _print(facts: dict[str, Any]) -> None:
    from qformats.cli.console import console, plain, table

    out = console()
    shown = table(
        "format", "bits", "block", "level", "", right=("bits", "block", "level"), dropped=("block", "level")
    )
    for row in facts["formats"]:
        if row["write"]:
            name = row["name"] + (" *" if row["default"] else "")
            block = str(row["block_size"] or "row")
            shown.add_row(
                name, f"{row['bits_per_weight']:.4g}", block, str(row["level"]), plain(row["summary"])
            )
    if shown.rows:
        out.print(shown)
        out.print("\n* default of its family; bits: bits per weight, scales included")
        out.print("level " + "; ".join(f"{level}: {meaning}" for level, meaning in enumerate(_LEVELS)))
    if facts["mixtures"]:
        out.print("\n[bold]mixtures[/bold] (several formats in one model)")
        mixed = table("", "")
        for row in facts["mixtures"]:
            mixed.add_row(row["name"], plain(row["summary"]))
        out.print(mixed)
    read_only = [row for row in facts["formats"] if not row["write"]]
    for family in dict.fromkeys(row["name"].partition(":")[0] for row in read_only):
        out.print(f"\n[bold]{family}, read only[/bold] (bits per weight)")
        out.print(_listed([row for row in read_only if row["name"].startswith(f"{family}:")]))
    for title in ("quantizers", "containers") if "containers" in facts else ():
        out.print(f"\n[bold]{title}[/bold]")
        names = table("", "")
        for item in facts[title]:
            names.add_row(item["name"], plain(item["summary"]))
        out.print(names)
    for plugin, reason in facts.get("failed_plugins", {}).items():
        out.print(f"\n[red]failed to load[/red]: {plain(plugin)}: {plain(reason)}")


def _print_one(row: dict[str, Any], packer: Packer) -> None:
    """What one format stores, and how to write it."""
    from qformats.cli.console import console, plain, table

    out = console()
    out.print(f"[bold]{plain(row['name'])}[/bold]  {plain(row['summary'])}")
    facts = table("", "")
    facts.add_row("bits per weight", f"{row['bits_per_weight']:.4g}, scales included")
    facts.add_row("block", f"{row['block_size']} columns" if row["block_size"] else "the whole row")
    facts.add_row("level", f"{row['level']}: {_LEVELS[row['level']]}")
    facts.add_row("container", row["container"])
    facts.add_row("layout", plain(packer.spec.source))
    out.print(facts)
    out.print()
    fields = table("stored", "shape of (N, K)", "dtype", "unit")
    for field in packer.spec.fields:
        fields.add_row(plain(field.name), plain(", ".join(field.shape)), field.dtype, plain(field.unit))
    out.print(fields)
    if row["write"]:
        out.print(
            f"\nWrite it:  [bold]qformats export MODEL --format {plain(row['name'])}[/bold]", soft_wrap=True
        )
    else:
        out.print("\nIt can only be read.")


def _listed(rows: Sequence[dict[str, Any]]) -> str:
    # The no-break space keeps a name and its number on one line.
    return ", ".join(f"{row['name'].partition(':')[2]}\u00a0{row['bits_per_weight']:.4g}" for row in rows)
