"""``qformats plugins``: who registered what, and who failed."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from qformats.cli.reporting import Json

if TYPE_CHECKING:
    from qformats.registry import PluginRecord

__all__ = ["plugins"]


def plugins(json: Json = None) -> None:
    """List every plugin, including those that failed to load.

    qformats plugins
    """
    from qformats.cli.console import console, plain, table
    from qformats.cli.reporting import as_json
    from qformats.registry import registry

    records = registry().plugins
    if as_json([asdict(record) for record in records], json):
        return
    rows = table("plugin", "from", "state", "brings", prose=("brings",), dropped=("from", "state"))
    for record in records:
        state = "[red]failed[/red]" if record.error else "ok"
        origin = f"{record.distribution} {record.version}".rstrip()
        rows.add_row(plain(record.name), plain(origin), state, plain(record.error or _brought(record)))
    console().print(rows)


def _brought(record: PluginRecord) -> str:
    families: dict[str, list[str]] = {}
    for name in record.formats:
        family, _, variant = name.partition(":")
        families.setdefault(family, []).append(variant)
    parts = [f"formats {family}: {', '.join(variants)}" for family, variants in families.items()]
    parts += [f"quantizer {name}" for name in record.quantizers]
    parts += [f"container {name}" for name in record.loaders]
    parts += [f"model {name}" for name in record.models]
    parts += [f"hook {name}" for name in record.hooks]
    return "; ".join(parts) or "nothing"
