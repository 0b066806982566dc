"""Records of exports, which tests that edit an exported model remove: qformats refuses what has changed since."""

from __future__ import annotations

from pathlib import Path

from qformats.exporting.recorded import record_beside

__all__ = ["forget"]


def forget(model: Path) -> Path:
    """Remove the record of a folder or file, if it has one."""
    record = record_beside(model)
    if record is not None:
        record.unlink()
    return model
