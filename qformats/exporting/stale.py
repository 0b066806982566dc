"""Parts of an older split model of the same name, which a new export of fewer or other parts does not overwrite."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qformats.exporting.plan import Plan

__all__ = ["Stale", "recorded_files", "stale_parts"]

_SHOWN = 3


@dataclass(frozen=True)
class Stale:
    """Files beside an output that have its name and are not of it.

    Attributes
    ----------
    replaced : tuple of Path
        Of the export that this one replaces, as its record tells.
    others : tuple of Path
        Parts of a model that nothing here knows; they stay.
    """

    replaced: tuple[Path, ...] = ()
    others: tuple[Path, ...] = ()

    def notes(self) -> tuple[str, ...]:
        """What a report says of them once the output is in place."""
        told = []
        if self.replaced:
            told.append(f"Removed with the export that this one replaces: {_listed(self.replaced)}")
        if self.others:
            are = "is a part" if len(self.others) == 1 else "are parts"
            told.append(f"{_listed(self.others)} beside it {are} of another model of the same name")
        return tuple(told)


def stale_parts(plan: Plan, final: Sequence[Path], record: Path) -> Stale:
    """Find them; a folder is replaced as a whole, so that it has none.

    Only names of this output are looked at, ``NAME.gguf`` and ``NAME-00001-of-00003.gguf``, whatever a record says:
    it may have come with somebody else's model.

    Parameters
    ----------
    plan : Plan
        The export.
    final : sequence of Path
        What it puts in place.
    record : Path
        Its record, or that of the export before.
    """
    suffix = plan.loader.suffix
    if plan.layout.folder or not suffix:
        return Stale()
    stem = re.escape(plan.target.name.removesuffix(suffix))
    part = re.compile(rf"{stem}-\d{{5}}-of-\d{{5}}{re.escape(suffix)}", re.DOTALL)
    whole = re.compile(rf"{stem}{re.escape(suffix)}", re.DOTALL)
    sources = {file.resolve() for file in plan.source.files}
    known = recorded_files(record)
    replaced: list[Path] = []
    others: list[Path] = []
    for file in sorted(plan.target.parent.iterdir()) if plan.target.parent.is_dir() else ():
        matches = part.fullmatch(file.name) or (file.name in known and whole.fullmatch(file.name))
        if not matches or file in final or not file.is_file() or file.resolve() in sources:
            continue
        (replaced if file.name in known else others).append(file)
    return Stale(tuple(replaced), tuple(others))


def recorded_files(record: Path) -> set[str]:
    """Files of an output of ours, as its record lists them: paths relative to its folder."""
    try:
        files = json.loads(record.read_bytes())["files"]
        return {str(name) for name, _ in files}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()


def _listed(files: Sequence[Path]) -> str:
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    return ", ".join(file.name for file in files[:_SHOWN]) + more
