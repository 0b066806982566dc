"""A publisher's run from beginning to end."""

from __future__ import annotations

import math
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qformats.comparing import CompareReport, compare, require_text
from qformats.comparing import Settings as CompareSettings
from qformats.errors import CheckpointError, ConfigError, OutputError, QFormatsError, spelled
from qformats.exporting import ExportReport, Plan
from qformats.exporting.journal import SUFFIX as PARTIAL
from qformats.exporting.journal import finish_or_undo
from qformats.exporting.prepare import SUFFIX as PREPARED
from qformats.exporting.report import TensorReport, report_of
from qformats.exporting.run import execute_all
from qformats.exporting.seal import check_target, final_paths, record_path
from qformats.interfaces.checkpoint import Checkpoint
from qformats.publishing.card import Card, card_text
from qformats.publishing.files import CARD, CHECKSUMS, checksums, inside
from qformats.publishing.finished import Finished
from qformats.publishing.report import Published, PublishReport
from qformats.sources import open_model
from qformats.work.pool import threads
from qformats.work.progress import Progress, Silent
from qformats.work.signals import uninterrupted
from qformats.work.targets import hidden_beside, refuse_stream
from qformats.work.writing import write_bytes

__all__ = ["Settings", "planned", "publish"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_CACHED = re.compile(r"models--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)", re.ASCII)
"""Folder of a repository in the hub's cache."""


@dataclass(frozen=True)
class Settings:
    """How to publish.

    Attributes
    ----------
    base_model : str
        The model's id on the hub; by default known only of one that came from there.
    text : str or None
        File that divergences are measured on, or ``"demo"``; ``None`` to measure none.
    window, windows : int, int or None
        Tokens per window of the text, and how many windows at most.
    device : str or None
        Where models run on the text; a GPU if there is one.
    options : mapping of str to str
        Of the loaders.
    workers : int or None
        Threads; all cores by default.
    force, keep_partial, require_exact, verify : bool
        As in an export.
    """

    base_model: str = ""
    text: str | None = None
    window: int = 512
    windows: int | None = None
    device: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    workers: int | None = None
    force: bool = False
    keep_partial: bool = False
    verify: bool = False
    require_exact: bool = False

    @property
    def compared(self) -> CompareSettings:
        """How the outputs are compared with the source."""
        return CompareSettings(
            text=self.text,
            window=self.window,
            windows=self.windows,
            device=self.device,
            workers=self.workers,
            options=self.options,
        )


def planned(source: Checkpoint, plans: Sequence[Plan], settings: Settings) -> PublishReport:
    """Report of a run that has not begun.

    Raises
    ------
    ConfigError
        If the id of the base model cannot be one.
    """
    card = _card(source, settings)
    outputs = tuple(Published(plan.target.name, report_of(plan)) for plan in plans)
    return PublishReport(
        source=str(source.path),
        folder=str(plans[0].target.parent),
        name=source.name,
        base_model=card.base_model,
        outputs=outputs,
        text=None,
        card=CARD,
        checksums=CHECKSUMS,
        notes=card.notes,
    )


def publish(
    source: Checkpoint, plans: Sequence[Plan], settings: Settings, progress: Progress | None = None
) -> PublishReport:
    """Write a model in many formats in one pass over it, then the checksums, the divergences and the card.

    Every output is put in place whole, all of them together. A run that was killed goes on where it stopped when it is
    started again; outputs that are in place by then are not made again.

    Parameters
    ----------
    source : Checkpoint
        The model.
    plans : sequence of Plan
        From :func:`plan_all`, with targets in one folder.
    settings : Settings
        How.
    progress : Progress, optional
        Receives progress reports.

    Raises
    ------
    QFormatsError
        Whatever is wrong with the input or the folder; then nothing is left behind.
    """
    progress = progress or Silent()
    workers = threads(settings.workers)
    began = time.perf_counter()
    report = planned(source, plans, settings)
    folder = plans[0].target.parent
    if folder.exists() and not folder.is_dir():
        raise OutputError(folder, "is a file, but several formats go into a folder", "Choose another name")
    with uninterrupted(late=True):
        finished = Finished(folder)
    try:
        left = _left(plans, settings, finished)
        if settings.text is not None:
            # Models are run at the end, hours from now.
            progress.start("loading Transformers, and reading the text", 0)
            require_text(source, settings.compared)
        outputs = _written(plans, left, settings, finished, progress)
        if finished.made:
            # Of a mistyped path nothing else would tell.
            progress.notice(f"made the folder {folder}")
        try:
            files = inside(path for plan in plans for path in final_paths(plan))
            sums = checksums(folder, files, workers, progress)
            _put(finished, folder / CHECKSUMS, sums)
            compared = _compared(source, plans, settings, progress)
            report = replace(report, outputs=tuple(outputs), text=None if compared is None else compared.text)
            if compared is not None:
                told = tuple(note.rstrip(".") for note in compared.notes)
                report = replace(report, outputs=_measured(outputs, compared), notes=(*report.notes, *told))
            _put(finished, folder / CARD, card_text(report, _card(source, settings), plans))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_remaining(plans)) from None
        except QFormatsError as error:
            error.advise(_remaining(plans))
            raise
    except BaseException:
        with uninterrupted():
            finished.close(done=False)
        raise
    finished.close(done=True)
    return replace(report, seconds=time.perf_counter() - began)


def _remaining(plans: Sequence[Plan]) -> str:
    """What a run that ended after the outputs were in place has done, and what is missing."""
    folder = plans[0].target.parent
    return f"the {len(plans)} formats are in {folder}; run the same command again for {CHECKSUMS} and {CARD}"


def _left(plans: Sequence[Plan], settings: Settings, finished: Finished) -> dict[str, str]:
    """What is not in place yet, by name, with what decides its bytes; refuses what may not be replaced.

    A calibrated plan is another one once it is prepared, so that the identity is that of the plan before.
    """
    with uninterrupted(late=True):
        # Half of an output may be elsewhere, and what was partial beside a whole one.
        for plan in plans:
            finish_or_undo(plan.target, plan.partial_name)
    identities = {plan.target.name: plan.identity([]) for plan in plans}
    left = [plan for plan in plans if not finished.holds(plan.target, identities[plan.target.name])]
    folder = plans[0].target.parent
    _require_free(folder, finished, settings.force)
    for plan in left:
        check_target(plan, settings.force)
    _require_space(folder, left)
    return {plan.target.name: identities[plan.target.name] for plan in left}


def _written(
    plans: Sequence[Plan],
    left: Mapping[str, str],
    settings: Settings,
    finished: Finished,
    progress: Progress,
) -> list[Published]:
    """Write what is left."""
    earlier = [plan.target.name for plan in plans if plan.target.name not in left]
    if earlier:
        progress.notice(f"written already, by a run that was interrupted: {', '.join(earlier)}")
    done: dict[str, ExportReport] = {}
    if left:
        reports = execute_all(
            [plan for plan in plans if plan.target.name in left],
            force=settings.force,
            workers=settings.workers,
            keep_partial=settings.keep_partial,
            verify=settings.verify,
            require_exact=settings.require_exact,
            progress=progress,
            placing=lambda plan, moves: finished.expect(plan.target, left[plan.target.name], moves),
        )
        done = dict(zip(left, reports, strict=True))
    return [
        Published(plan.target.name, done[plan.target.name])
        if plan.target.name in done
        else Published(plan.target.name, _recorded(plan), earlier=True)
        for plan in plans
    ]


def _recorded(plan: Plan) -> ExportReport:
    """Report of an output that an earlier run has written, with what its record says of the data."""
    import json

    told: dict[str, Any] = json.loads(record_path(plan).read_text(encoding="utf-8"))
    tensors = [TensorReport(**{**tensor, "shape": tuple(tensor["shape"])}) for tensor in told["tensors"]]
    return replace(
        report_of(plan),
        tensors=tuple(tensors),
        calibration=told["calibration"],
        calibration_sha256=told.get("calibration_sha256", ""),
    )


def _require_free(folder: Path, finished: Finished, force: bool) -> None:
    """Refuse to replace a card or checksums that are not of this run."""
    for name in (CARD, CHECKSUMS):
        path = folder / name
        refuse_stream(path)
        if path.is_dir():
            raise OutputError(path, "is a folder", "Choose another folder" + spelled(" with --output", ""))
        if os.path.lexists(path) and not force and not finished.holds(path, ""):
            hint = "Choose another folder, or replace it with " + spelled("--force", "force=True")
            raise OutputError(path, "exists already", hint)


def _require_space(folder: Path, plans: Sequence[Plan]) -> None:
    """Refuse a disk that cannot hold all outputs, beside what a calibration keeps until the end."""
    need = sum(plan.layout.nbytes for plan in plans)
    for plan in plans:
        if plan.quantizer.prepares:
            need += sum(tensor.nbytes for tensor in plan.tensors if tensor.packer.quantizes)
    begun = [hidden_beside(plan.target, plan.partial_name, s) for plan in plans for s in (PARTIAL, PREPARED)]
    there = sum(file.stat().st_blocks * 512 for file in inside(path for path in begun if path.is_dir()))
    free = shutil.disk_usage(folder).free + there
    if need > free:
        found = f"the disk has {free:,} bytes free, and the {len(plans)} outputs take {need:,}"
        raise OutputError(folder, found, "Free some space, or choose another disk")


def _put(finished: Finished, path: Path, text: str) -> None:
    """Write a file beside the outputs, so that a later run knows it again."""
    content = text.encode("utf-8", "backslashreplace")
    with uninterrupted(late=True):
        finished.expect_content(path, content)
        write_bytes(path, content)


def _compared(
    source: Checkpoint, plans: Sequence[Plan], settings: Settings, progress: Progress
) -> CompareReport | None:
    """What the outputs predict for the text, as qformats compare measures it."""
    if settings.text is None:
        return None
    first = [
        plan.target if plan.layout.folder else plan.target.with_name(plan.layout.files[0].name)
        for plan in plans
    ]
    return compare(source, [open_model(path, {}) for path in first], [], settings.compared, progress)


def _measured(outputs: Sequence[Published], compared: CompareReport) -> tuple[Published, ...]:
    found = []
    for output, model in zip(outputs, compared.models, strict=True):
        against = None if model.behaviour is None else model.behaviour.against
        if against is None or not math.isfinite(against.kl.mean.value):
            found.append(replace(output, notes=model.notes))
        else:
            found.append(replace(output, mean_kl=against.kl.mean, same_top=against.same_top))
    return tuple(found)


def _card(source: Checkpoint, settings: Settings) -> Card:
    """What is known of the model for its card."""
    base = settings.base_model
    if base and not _HUB_ID.fullmatch(base):
        raise ConfigError("base-model", base, "an id on the hub, organisation/name")
    notes = []
    if not base:
        base = _hub_id(source.path)
    if not base:
        how = spelled("--base-model ORGANISATION/NAME", "base_model='organisation/name'")
        notes.append(f"{CARD} does not link the base model, since its id on the hub is not known: {how}")
    try:
        front: Mapping[str, Any] = source.card
    except CheckpointError as error:
        front = {}
        notes.append(str(error).rstrip("."))
    card = Card(front, base, source.config if _known(source) else {}, tuple(notes))
    if not card.license:
        told = f"{CARD} names no license, since the source does not: add it before you publish"
        card = replace(card, notes=(*card.notes, told))
    return card


def _known(source: Checkpoint) -> bool:
    from qformats.errors import UnsupportedModelError

    try:
        return bool(source.config)
    except UnsupportedModelError:
        return False


def _hub_id(path: Path) -> str:
    """Id of a model in the hub's cache; empty for one that lies elsewhere."""
    for each in (path, *path.parents):
        found = _CACHED.fullmatch(each.name)
        if found is not None:
            return f"{found['owner']}/{found['name']}"
    return ""
