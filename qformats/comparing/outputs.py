"""Where the files of a report may go: not onto each other, and only in place of earlier reports."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from qformats.errors import ConfigError, OutputError
from qformats.work.writing import check_place

__all__ = ["check_outputs"]

_HEAD = 1 << 12
"""Bytes by which a report can be recognised."""
_BEGINS = {
    "json": '{\n  "base": {\n    "name": ',
    "csv": "name,path,format,formats,container,tried,quantizer,",
}
_HOLDS = {"html": ("<!doctype html>", '<meta name="generator" content="qformats')}


def check_outputs(files: Mapping[str, Path]) -> None:
    """Refuse places for the files of a comparison before the work is done.

    Parameters
    ----------
    files : mapping of str to Path
        By kind: ``json``, ``csv`` and ``html``, which replace an earlier report of that kind, and ``logits``, whose
        content is looked at where it is read.

    Raises
    ------
    ConfigError
        If two of them are one file.
    OutputError
        If a file cannot be written, or exists and is not an earlier report.
    """
    taken: dict[str, str] = {}
    for kind, path in files.items():
        other = taken.setdefault(os.path.realpath(path), kind)
        if other != kind:
            raise ConfigError(f"--{kind}", str(path), f"a file other than that of --{other}")
    for kind, path in files.items():
        check_place(path)
        if kind != "logits" and path.exists() and not _is_report(path, kind):
            found = f"exists already and is not a {kind.upper()} report of an earlier comparison"
            raise OutputError(
                path, f"{found}, so it is not replaced", "Name another file, or remove this one"
            )


def _is_report(path: Path, kind: str) -> bool:
    """Whether a file holds what an earlier comparison wrote; an empty one has nothing to lose."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD).decode(errors="replace")
    except OSError as error:
        raise OutputError(path, f"cannot be read ({error.strerror or error})") from error
    marks = _HOLDS.get(kind, ())
    return not head or (head.startswith(_BEGINS.get(kind, "")) and all(mark in head for mark in marks))
