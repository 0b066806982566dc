"""One export, or several of one model, from beginning to end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path

from qformats.errors import CheckpointError, WorkerError
from qformats.exporting.check import require_exact as refuse_inexact
from qformats.exporting.engines.engine import Engine, WorkersLost
from qformats.exporting.engines.local import Local
from qformats.exporting.fill import Output, OutputFiles, Slice, slices_of
from qformats.exporting.journal import Journal, finish_or_undo
from qformats.exporting.one_pass import fill
from qformats.exporting.plan import Plan, make_plan
from qformats.exporting.prepare import Workspace, prepare
from qformats.exporting.recipe import Recipe
from qformats.exporting.recorded import require_unchanged
from qformats.exporting.report import ExportReport, report_of
from qformats.exporting.seal import check_target, leftovers, place, seal
from qformats.exporting.sound import warn_of_zeros
from qformats.exporting.transcode import Measure, total
from qformats.exporting.uploads import Upload, UploadFailed, destined
from qformats.interfaces.checkpoint import Checkpoint
from qformats.work.pool import threads
from qformats.work.progress import Progress, Silent
from qformats.work.signals import uninterrupted

__all__ = ["execute", "execute_all", "run"]


def run(
    source: Checkpoint,
    target: str | PathLike[str],
    recipe: Recipe,
    *,
    force: bool = False,
    workers: int | None = None,
    require_exact: bool = False,
    verify: bool = False,
    options: Mapping[str, str],
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Plan and execute; see :func:`qformats.export`."""
    local, upload = destined(target, force=force)
    plan = make_plan(source, local, recipe, options)
    return execute(
        plan,
        force=force,
        workers=workers,
        require_exact=require_exact,
        verify=verify,
        engine=engine,
        upload=upload,
        progress=progress,
    )


def execute(
    plan: Plan,
    *,
    force: bool = False,
    workers: int | None = None,
    keep_partial: bool = False,
    require_exact: bool = False,
    verify: bool = False,
    engine: Engine | None = None,
    upload: Upload | None = None,
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
    verify : bool
        Compare every byte of a source of ours with its record, and not only the sizes and a sample.
    engine : Engine, optional
        Where the work is done; in this process by default.
    upload : Upload, optional
        Where the output goes from the plan's target, which is in a scratch folder.
    progress : Progress, optional
        Receives progress reports.

    Raises
    ------
    QFormatsError
        Whatever is wrong with the input or the target.
    """
    (report,) = execute_all(
        [plan],
        force=force,
        workers=workers,
        keep_partial=keep_partial,
        require_exact=require_exact,
        verify=verify,
        engine=engine,
        upload=upload,
        progress=progress,
    )
    return report


def execute_all(
    plans: Sequence[Plan],
    *,
    force: bool = False,
    workers: int | None = None,
    keep_partial: bool = False,
    require_exact: bool = False,
    verify: bool = False,
    engine: Engine | None = None,
    upload: Upload | None = None,
    progress: Progress | None = None,
    placing: Callable[[Plan, Sequence[tuple[Path, Path]]], None] | None = None,
) -> list[ExportReport]:
    """Carry out several plans of one source in one pass over it; see :func:`execute`.

    Quantizers that prepare the whole model do so first, one plan after the other. The outputs are put in place
    together, when all of them are written and checked.

    Parameters
    ----------
    plans : sequence of Plan
        With targets in one folder.
    force, workers, keep_partial, require_exact, verify, engine, upload, progress
        See :func:`execute`.
    placing : callable, optional
        Called for each output before any is put in place, with what will be moved where.
    """
    progress = progress or Silent()
    engine = engine or Local()
    here = threads(workers)
    began = time.perf_counter()
    with uninterrupted(late=True):
        # Before the targets are inspected: half of one may be elsewhere.
        for plan in plans:
            finish_or_undo(plan.target, plan.partial_name)
    for plan in plans:
        check_target(plan, force)
        _check_source(plan)
    if upload is not None:
        upload.check(plans[0], began=True)
    require_unchanged(plans[0].source, verify=verify, progress=progress, workers=here)
    new = [folder for folder in dict.fromkeys(plan.target.parent for plan in plans) if not folder.exists()]
    for plan in plans if require_exact else ():
        refuse_inexact(plan, here, progress)
    workspaces: list[Workspace] = []
    try:
        ready = []
        for plan in plans:
            if plan.quantizer.prepares:
                if len(plans) > 1:
                    progress.notice(f"{plan.target.name}: quantizer {plan.recipe.quantizer}")
                workspaces.append(Workspace(plan))
                plan = prepare(plan, workspaces[-1].files, progress)
            ready.append(plan)
        if any(after is not before for after, before in zip(ready, plans, strict=True)):
            # What a quantizer has made of the whole model is on this machine.
            engine = Local()
        reports = _write(ready, began, force, workers, keep_partial, engine, upload, progress, placing)
    except BaseException as error:
        with uninterrupted():
            for workspace in workspaces:
                workspace.close() if _kept(keep_partial, error) else workspace.discard()
        raise
    for workspace in workspaces:
        workspace.discard()
    for folder in new if upload is None else ():
        # Of a mistyped path nothing else would tell.
        progress.notice(f"made the folder {folder}")
    return reports


def _write(
    plans: Sequence[Plan],
    began: float,
    force: bool,
    workers: int | None,
    keep_partial: bool,
    engine: Engine,
    upload: Upload | None,
    progress: Progress,
    placing: Callable[[Plan, Sequence[tuple[Path, Path]]], None] | None,
) -> list[ExportReport]:
    """Fill and seal."""
    opened: list[Journal | OutputFiles] = []
    try:
        outputs = [_opened(plan, force, opened) for plan in plans]
        resumed = [len(output.journal.done) for output in outputs]
        if any(resumed):
            count = sum(len(output.slices) for output in outputs)
            progress.notice(
                f"going on with an interrupted export: {sum(resumed)} of {count} slices are written"
            )
        with engine.source(plans[0].source, _in_order(outputs)) as source:
            fill(outputs, engine, workers, progress, source.reach)
            for plan in plans:
                _check_source(plan)
            progress.start("checksums of the source", 0)
            identity = source.finish()
        reports = [_report(output, count) for output, count in zip(outputs, resumed, strict=True)]
        beside = [leftovers(plan).notes() for plan in plans]
        progress.start("checking what was written", 0)
        seal(outputs, reports, identity, engine, workers)
        if upload is None:
            place(outputs, force, placing)
        else:
            upload.put(plans[0], outputs[0].journal, progress)
            outputs[0].journal.discard()
            upload.close()
            reports = [replace(reports[0], target=upload.url, run_with="")]
    except BaseException as error:
        with uninterrupted():
            # The first journal goes last: it removes the folders that were made for all.
            for each in reversed(opened):
                kept = _kept(keep_partial, error)
                if upload is not None and isinstance(each, Journal) and not kept:
                    upload.undo(plans[0], each)
                each.discard() if isinstance(each, Journal) and not kept else each.close()
            if upload is not None:
                upload.close()
        raise
    warn_of_zeros(
        [
            (t.name, t.vanished, t.shape[0] if len(t.shape) > 1 else 1, t.format)
            for report in reports
            for t in report.tensors
            if t.vanished
        ]
    )
    seconds = time.perf_counter() - began
    # Not in the record: what lay there before is no part of the output.
    return [
        replace(report, seconds=seconds, notes=(*report.notes, *notes))
        for report, notes in zip(reports, beside, strict=True)
    ]


def _kept(keep_partial: bool, error: BaseException) -> bool:
    """Whether what is written stays: nobody wants to lose hours of work because machines or a store went away."""
    lost = isinstance(error, WorkerError) and error.lost
    return keep_partial or lost or isinstance(error, WorkersLost | UploadFailed)


def _in_order(outputs: Sequence[Output]) -> list[Path]:
    """Files of the source in the order in which they are read."""
    return list(
        dict.fromkeys(output.plan.tensors[s.tensor].source.file for output in outputs for s in output.slices)
    )


def _opened(plan: Plan, force: bool, opened: list[Journal | OutputFiles]) -> Output:
    """The partial output of a plan; what is to be closed or discarded is added to `opened` at once."""
    slices = slices_of(plan)
    with uninterrupted(late=True):
        identity = plan.identity([(s.tensor, s.start, s.stop) for s in slices])
        journal = Journal(plan.target, identity, plan.partial_name)
        opened.append(journal)
    # Again, now that nobody else can put it there.
    check_target(plan, force)
    files = OutputFiles(plan, journal.files)
    opened.append(files)
    journal.done = {
        index: written
        for index, written in journal.done.items()
        if 0 <= index < len(slices) and files.recovered(slices[index], written.spans)
    }
    return Output(plan, slices, files, journal)


def _report(output: Output, resumed: int) -> ExportReport:
    """What is recorded of an output that is written."""
    measures, zeros = _measures(output.slices, output.journal), _vanished(output.slices, output.journal)
    return report_of(output.plan, resumed=resumed, measures=measures, vanished=zeros)


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
