"""Everything that can be looked at, one after the other."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from qformats.errors import CheckpointError, ModelNotFoundError, UnsupportedModelError
from qformats.exporting.again import Again
from qformats.exporting.recorded import Record, record_beside
from qformats.folder.fit import fitted
from qformats.interfaces.checkpoint import Checkpoint
from qformats.sources import open_model
from qformats.verifying.collecting import Findings, clause
from qformats.verifying.derivation import derive, require_recipe
from qformats.verifying.files import check_files, check_strangers
from qformats.verifying.report import Derivation, VerifyReport
from qformats.verifying.tensors import check_tensors
from qformats.verifying.vocabulary import check_vocabulary
from qformats.work.pool import threads
from qformats.work.progress import Progress, Silent

__all__ = ["verify"]


def verify(
    model: str | PathLike[str],
    *,
    against: str | PathLike[str] | Checkpoint | None = None,
    options: Mapping[str, str],
    workers: int | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Look at all of a model; see :func:`qformats.verify`."""
    progress, workers, began = progress or Silent(), threads(workers), time.perf_counter()
    findings, notes = Findings(), list[str]()
    path = Path(model).expanduser()
    place = record_beside(path) if path.exists() else None
    record = None if place is None else Record.read(place)
    if against is not None:
        if record is None:
            # What is not there is the first thing to say.
            open_model(model, options)
        require_recipe(None if record is None else Again.of(record), model)
        assert record is not None
    if record is None:
        notes.append("There is no record beside it: nothing tells whether its bytes have changed")
    else:
        check_files(record, findings, workers, progress)
        if not record.pieces:
            notes.append(f"{record.path.name} has no checksums: an earlier version has written it")
    progress.start("reading the headers", 0)
    source: Checkpoint | None = None
    derivation: Derivation | None = None
    with findings.listening():
        source = _opened(model, path, options, findings, known=record is not None)
        if source is not None:
            notes += source.notes
            if record is not None:
                check_strangers(record, source, findings)
            check_tensors(source, findings, workers, progress)
            notes += _fit(source, findings)
            told = check_vocabulary(source, findings)
            notes += [told] if told else []
    if against is not None and record is not None:
        again = Again.of(record)
        base = against if isinstance(against, Checkpoint) else open_model(against, again.options)
        derivation = derive(again, base, findings, workers, progress)
        if derivation is not None and not derivation.identical:
            notes.append("The files of the source are not those that were recorded")
    files = [file for file in source.files if file.exists()] if source is not None else []
    if record is not None:
        files += [record.file(name) for name in record.sizes if record.file(name).is_file()]
    sizes = {file.resolve(): file.stat().st_size for file in files}
    formats = (
        Counter(t.stored_format for t in source.tensors.values()) if source is not None else Counter[str]()
    )
    return VerifyReport(
        path=str(path if path.exists() else model),
        record=None if record is None else record.path.name,
        checksums=record is not None and bool(record.pieces),
        files=len(sizes),
        nbytes=sum(sizes.values()),
        formats=dict(formats.most_common()),
        findings=findings.all,
        notes=tuple(dict.fromkeys(note.rstrip(".") for note in notes)),
        derivation=derivation,
        seconds=time.perf_counter() - began,
    )


def _opened(
    model: str | PathLike[str],
    path: Path,
    options: Mapping[str, str],
    findings: Findings,
    *,
    known: bool,
) -> Checkpoint | None:
    """The model; what prevents it from being opened is a finding, unless nothing tells that there ever was one."""
    with findings.about("structure"):
        try:
            return open_model(model, options)
        except CheckpointError as error:
            file = Path(error.file)
            name = file.relative_to(path).as_posix() if file.is_relative_to(path) else file.name
            findings.add("structure", clause(error), file=name, tensor=error.tensor or "")
        except ModelNotFoundError as error:
            if not known:
                raise
            findings.add("structure", clause(error).removeprefix(f"{error.model}: ").partition(". ")[0])
        except UnsupportedModelError as error:
            # A byte of a name may have changed.
            if not known:
                raise
            findings.add("structure", clause(error))
    return None


def _fit(source: Checkpoint, findings: Findings) -> list[str]:
    """Compare names and shapes with those of the model's class."""
    try:
        with findings.about("structure"):
            return list(fitted(source).notes)
    except UnsupportedModelError as error:
        return [f"Its tensors were not compared with those of a class: {clause(error)}"]
    return []
