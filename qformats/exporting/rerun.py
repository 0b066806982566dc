"""Running a record's recipe again, and saying whether the same bytes came out."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

from qformats.exporting.again import Again
from qformats.exporting.engines.engine import Engine
from qformats.exporting.plan import make_plan
from qformats.exporting.recorded import Record
from qformats.exporting.report import ExportReport
from qformats.exporting.run import execute
from qformats.exporting.seal import record_path
from qformats.interfaces.checkpoint import Checkpoint
from qformats.work.pool import threads
from qformats.work.progress import Progress, Silent

__all__ = ["rerun"]


def rerun(
    again: Again,
    source: Checkpoint,
    target: Path,
    *,
    force: bool = False,
    workers: int | None = None,
    keep_partial: bool = False,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Export a model by the recipe of a record.

    Parameters
    ----------
    again : Again
        The recipe.
    source : Checkpoint
        The model that it was made from; another one is refused.
    target : Path
        File or folder to write.
    force, workers, keep_partial, engine, progress
        See :func:`qformats.exporting.run.execute`.

    Raises
    ------
    QFormatsError
        Whatever is wrong with the input or the target, and a source that differs.
    """
    progress = progress or Silent()
    again.require_source(source, threads(workers), progress)
    plan = make_plan(again.renamed(source), target, again.recipe, again.options)
    with again.conditions():
        report = execute(
            plan, force=force, workers=workers, keep_partial=keep_partial, engine=engine, progress=progress
        )
    differs = again.compared(plan, Record.read(record_path(plan)))
    if differs:
        warnings.warn(differs, UserWarning, stacklevel=2)
        return report
    return replace(
        report, notes=(*report.notes, f"The bytes are those that {again.record.path.name} records")
    )
