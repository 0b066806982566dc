"""One export from beginning to end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path

from qformats.errors import CheckpointError
from qformats.exporting.check import require_exact as refuse_inexact
from qformats.exporting.fill import OutputFiles, Slice, fill, slices_of
from qformats.exporting.journal import Journal, finish_or_undo
from qformats.exporting.plan import Plan, make_plan
from qformats.exporting.prepare import Workspace, prepare
from qformats.exporting.recipe import Recipe
from qformats.exporting.report import ExportReport, report_of
from qformats.exporting.seal import check_target, leftovers, seal
from qformats.exporting.sound import warn_of_zeros
from qformats.exporting.transcode import Measure, total
from qformats.interfaces.checkpoint import Checkpoint
from qformats.work.pool import threads
from qformats.work.progress import Progress, Silent
from qformats.work.signals import uninterrupted

__all__ = ["execute", "run"]


def run(
    source: Checkpoint,
    target: str | PathLike[str],
    recipe: Recipe,
    *,
    force: bool = False,
    workers: int | None = None,
    require_exact: bool = False,
    options: Mapping[str, str],
    progress: Progress | None = None,
) -> ExportReport:
    """Plan and execute; see :func:`qformats.export`."""
    plan = make_plan(source, Path(target), recipe, options)
    return execute(plan, force=force, workers=workers, require_exact=require_exact, progress=progress)


def execute(
    plan: Plan,
    *,
    force: bool = False,
    workers: int | None = None,
    keep_partial: bool = False,
    require_exact: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Carry out a plan.

    Parameters
    ----------
    plan : Plan
        From :func:`qformats.exporting.make_plan`.
    force : bool
        Replace an existing target.
    workers : int, optional
        Threads; all cores by default.
    keep_partial : bool
        Keep what is written when the export fails or is interrupted, so that the next run goes on from there.
    require_exact : bool
        Refuse, before anything is written, if a value would change.
    progress : Progress, optional
        Receives progress reports.

    Raises
    ------
    QFormatsError
        Whatever is wrong with the input or the target.
    """
    progress = progress or Silent()
    workers = threads(workers)
    began = time.perf_counter()
    with uninterrupted(late=True):
        # Before the target is inspected: half of it may be elsewhere.
        finish_or_undo(plan.target, plan.partial_name)
    check_target(plan, force)
    _check_source(plan)
    folder = plan.target.parent
    new = not folder.exists()
    if require_exact:
        refuse_inexact(plan, workers, progress)
    if not plan.quantizer.prepares:
        report = _write(plan, began, force, workers, keep_partial, progress)
        _tell_of(folder, new, progress)
        return report
    workspace = Workspace(plan)
    try:
        report = _write(
            prepare(plan, workspace.files, progress), began, force, workers, keep_partial, progress
        )
    except BaseException:
        with uninterrupted():
            workspace.close() if keep_partial else workspace.discard()
        raise
    workspace.discard()
    _tell_of(folder, new, progress)
    return report


def _tell_of(folder: Path, new: bool, progress: Progress) -> None:
    """Say that there was no such folder: of a mistyped path nothing else would tell."""
    if new:
        progress.notice(f"made the folder {folder}")


def _write(
    plan: Plan, began: float, force: bool, workers: int, keep_partial: bool, progress: Progress
) -> ExportReport:
    """Fill and seal."""
    slices = slices_of(plan)
    journal: Journal | None = None
    files: OutputFiles | None = None
    try:
        with uninterrupted(late=True):
            identity = plan.identity([(s.tensor, s.start, s.stop) for s in slices])
            journal = Journal(plan.target, identity, plan.partial_name)
        # Again, now that nobody else can put it there.
        check_target(plan, force)
        files = OutputFiles(plan, journal.files)
        journal.done = {
            index: written
            for index, written in journal.done.items()
            if 0 <= index < len(slices) and files.recovered(slices[index], written.spans)
        }
        resumed = len(journal.done)
        if resumed:
            progress.notice(
                f"going on with an interrupted export: {resumed} of {len(slices)} slices are written"
            )
        fill(plan, slices, files, journal, workers, progress)
        _check_source(plan)
        measures, zeros = _measures(slices, journal), _vanished(slices, journal)
        report = report_of(plan, resumed=resumed, measures=measures, vanished=zeros)
        beside = leftovers(plan).notes()
        progress.start("checking what was written", 0)
        seal(plan, files, journal, report, workers, force)
    except BaseException:
        with uninterrupted():
            if files is not None:
                files.close()
            if journal is not None:
                journal.close() if keep_partial else journal.discard()
        raise
    warn_of_zeros(
        [
            (t.name, t.vanished, t.shape[0] if len(t.shape) > 1 else 1, t.format)
            for t in report.tensors
            if t.vanished
        ]
    )
    # Not in the record: what lay there before is no part of the output.
    return replace(report, seconds=time.perf_counter() - began, notes=(*report.notes, *beside))


def _measures(slices: Sequence[Slice], journal: Journal) -> dict[int, Measure]:
    """How the values of each tensor changed, summed over its slices in order."""
    parts: dict[int, list[Measure]] = {}
    for piece in slices:
        measure = journal.done[piece.index].measure
        if measure is not None:
            parts.setdefault(piece.tensor, []).append(measure)
    return {tensor: total(measures) for tensor, measures in parts.items()}


def _vanished(slices: Sequence[Slice], journal: Journal) -> dict[int, int]:
    """Rows of each tensor that became zeros."""
    found: dict[int, int] = {}
    for piece in slices:
        found[piece.tensor] = found.get(piece.tensor, 0) + journal.done[piece.index].vanished
    return found


def _check_source(plan: Plan) -> None:
    """Refuse a result whose halves may come from different versions of the model."""
    file = plan.changed()
    if file is not None:
        raise CheckpointError(
            file,
            "changed while it was being read",
            "the file as it was when the model was opened",
            hint="wait until nothing writes to it (a download, a training run), then export again",
        )
