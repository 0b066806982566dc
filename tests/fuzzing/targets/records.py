"""What qformats writes for itself: records beside exports, and journals of exports that were interrupted."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from qformats.exporting.again import Again
from qformats.exporting.journal import Journal, finish_or_undo
from qformats.exporting.recorded import RECORD, Record
from qformats.exporting.stale import recorded_files
from qformats.work.ownership import token
from qformats.work.progress import Silent

from .target import Target, each

__all__ = ["TARGETS"]

_IDENTITY = "identity-of-the-plan"
_OURS = "ours"
"""Stands in seeds for the token that only this user can make."""


def _record(folder: Path) -> None:
    recorded_files(folder / RECORD)
    record = Record.read(folder / RECORD)

    def bytes_of() -> None:
        names = [name for name in record.sizes if name in record.pieces]
        if not record.wrong_sizes(names):
            list(record.wrong_bytes(names, sample=False, workers=1, progress=Silent()))

    each(record.wrong_sizes, bytes_of, lambda: Again.of(record), lambda: record.tensor_name(0))


def _journal(folder: Path) -> None:
    """An export that goes on where a journal tells, once for its identity and once to clean up.

    Lines with the seeds' token are given a real one, as if an attacker had the user's key: also then nothing outside
    of the target and of its partial output may change.
    """
    home = folder.parents[1] / "free" / "export"
    shutil.rmtree(home, ignore_errors=True)
    target = home / "out.gguf"
    partial = home / ".out.gguf.qformats-partial"
    (partial / "files").mkdir(parents=True)
    partial.chmod(0o700)
    (partial / "files" / "out.gguf").write_bytes(b"new")
    (home / "beside").write_text("not of this export")
    if (folder / "replaced.jsonl").exists():
        (partial / "replaced").mkdir()
        (partial / "replaced" / "out.gguf").write_bytes(b"old")
    log = folder / "journal.jsonl"
    lines = [_signed(partial, line) for line in log.read_bytes().split(b"\n")] if log.exists() else []
    (partial / "journal.jsonl").write_bytes(b"\n".join(lines))

    def again() -> None:
        journal = Journal(target, _IDENTITY)
        assert all(isinstance(number, int) for number in journal.done)
        journal.close()

    each(again, lambda: finish_or_undo(target), lambda: Journal(target, "another").discard())
    assert (home / "beside").read_text() == "not of this export"
    assert set(os.listdir(home)) <= {"beside", "out.gguf", partial.name, *_told(lines)}


def _signed(partial: Path, line: bytes) -> bytes:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return line
    if not isinstance(entry, dict) or entry.get("token") != _OURS:
        return line
    content = str(entry.get("identity"))
    if "placing" in entry:
        content = json.dumps([entry["placing"], entry.get("new")])
    return json.dumps(entry | {"token": token(partial, content)}).encode()


def _told(lines: list[bytes]) -> set[str]:
    """Names beside the target that signed lines tell."""
    found: set[str] = set()
    for line in lines:
        try:
            found |= {str(final) for _, final in json.loads(line)["placing"]}
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return found


TARGETS = (
    Target("record", _record, weights={".json": 8, "": 0.2}),
    Target("journal", _journal, weights={"journal.jsonl": 8, "replaced.jsonl": 1}),
)
