"""Prepare: what a quantizer works out over the whole model before any tensor is written."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from dataclasses import replace
from pathlib import Path

from qformats.errors import OutputError
from qformats.exporting.journal import unwritable
from qformats.exporting.plan import Action, Plan, make_plan
from qformats.exporting.progress import Progress
from qformats.registry import registry

__all__ = ["Workspace", "prepare"]

SUFFIX = ".qformats-prepared"
_IDENTITY = "identity"
_LOCK = "lock"


class Workspace:
    """Folder beside the target where a quantizer keeps what it has finished, to go on from there after a kill.

    Parameters
    ----------
    plan : Plan
        What is prepared; the work of another plan is discarded.

    Raises
    ------
    OutputError
        If the place cannot be written, or another process is at work there.
    """

    def __init__(self, plan: Plan) -> None:
        self.folder = plan.target.with_name(f".{plan.partial_name}{SUFFIX}")
        self.files = self.folder / "files"
        self._lock = -1
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                found = "is being written by another process"
                raise OutputError(plan.target, found, "Wait for it, or stop it") from error
            self._claim(plan.identity([]))
        except OSError as error:
            self.close()
            raise error if isinstance(error, OutputError) else unwritable(plan.target, error) from error

    def _claim(self, identity: str) -> None:
        mark = self.folder / _IDENTITY
        if not mark.is_file() or mark.read_text() != identity:
            shutil.rmtree(self.files, ignore_errors=True)
            mark.write_text(identity)
        self.files.mkdir(exist_ok=True)

    def close(self) -> None:
        """Let go of it but keep what is in it."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def discard(self) -> None:
        """Remove it."""
        shutil.rmtree(self.files, ignore_errors=True)
        with contextlib.suppress(OSError):
            (self.folder / _IDENTITY).unlink()
            (self.folder / _LOCK).unlink()
            self.folder.rmdir()
        self.close()


def prepare(plan: Plan, workspace: Path, progress: Progress) -> Plan:
    """Let the quantizer work on the whole model; the plan of what is then left to write.

    Parameters
    ----------
    plan : Plan
        Of the model as it is.
    workspace : Path
        Where the quantizer may keep what it has finished.
    progress : Progress
        Is told how far the work is.
    """
    recipe = plan.recipe
    quantizer = registry().quantizer(recipe.quantizer)
    formats = {
        tensor.assignment.draft.source.name: tensor.packer
        for tensor in plan.tensors
        if tensor.action is Action.QUANTIZE
    }
    prepared = quantizer.prepare(plan.source, formats, workspace, dict(recipe.quantizer_options), progress)
    prepared.fingerprint = plan.fingerprint
    # Reports tell what the model was, not what it became on the way.
    prepared.tensors = {
        name: replace(tensor, nbytes=plan.source.tensors[name].nbytes)
        for name, tensor in prepared.tensors.items()
    }
    return make_plan(prepared, plan.target, recipe, plan.options)
