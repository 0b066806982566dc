"""Seal: check what was written, sync it, and put it in place as one."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

import xxhash

from qformats.errors import ConfigError, OutputError, spelled
from qformats.exporting.engines.engine import Engine
from qformats.exporting.fill import Output, OutputFiles
from qformats.exporting.journal import Journal, Span, sync_folder
from qformats.exporting.keeping import record
from qformats.exporting.plan import Plan
from qformats.exporting.recorded import RECORD
from qformats.exporting.report import ExportReport
from qformats.exporting.stale import Stale, recorded_files, stale_parts
from qformats.registry import registry
from qformats.work.checksums import Piece
from qformats.work.signals import uninterrupted
from qformats.work.targets import LONGEST_NAME, refuse_stream

__all__ = [
    "check_target",
    "final_paths",
    "foreign_names",
    "leftovers",
    "place",
    "record_name",
    "record_path",
    "seal",
]

_OF_MODELS = (
    *(
        "*.json",
        "*.safetensors",
        "*.bin",
        "*.pt",
        "*.model",
        "*.tiktoken",
        "*.jinja",
        "*.md",
        "merges.txt",
        "vocab.txt",
    ),
    *("modeling_*.py", "configuration_*.py", "tokenization_*.py", "LICENSE*", "NOTICE*", ".gitattributes"),
)
"""What folders of models contain; a folder with anything else in it is never replaced as a whole."""
_OF_TRAINING = ("optimizer.pt", "optimizer.bin", "scheduler.pt", "training_args.bin", "trainer_state.json")
"""A folder with one of these is a training run's, to be continued: no other program can make it again."""
_FOLDERS = (".cache", "additional_chat_templates")
"""Folders inside a model's."""


def record_name(plan: Plan) -> str:
    """File name of the record of an export."""
    return RECORD if plan.layout.folder else f"{plan.target.name}.{RECORD}"


def record_path(plan: Plan) -> Path:
    """The record of an export that is in place."""
    return plan.target / RECORD if plan.layout.folder else plan.target.with_name(record_name(plan))


def final_paths(plan: Plan) -> list[Path]:
    """Every path that the export will put in place."""
    if plan.layout.folder:
        return [plan.target]
    return [plan.target.with_name(name) for name in (*(f.name for f in plan.layout.files), record_name(plan))]


def leftovers(plan: Plan) -> Stale:
    """Parts of an older model of the same name that the export will not overwrite."""
    return stale_parts(plan, final_paths(plan), plan.target.with_name(record_name(plan)))


def _another() -> str:
    return "Choose another name" + spelled(" with --output", "")


def _replace() -> str:
    return "Choose another name, or replace it with " + spelled("--force", "force=True")


def check_target(plan: Plan, force: bool) -> None:
    """Refuse a target that must not be replaced.

    Raises
    ------
    OutputError
        If it exists and `force` is not given, is the source, or is a folder that holds no model.
    """
    sources = [file.resolve() for file in plan.source.files]
    for path in final_paths(plan):
        if len(os.fsencode(path.name)) > LONGEST_NAME:
            found = f"its name is too long: {path.name[:40]}... has {len(os.fsencode(path.name))} bytes"
            raise OutputError(plan.target, found, f"{_another()}: file systems hold {LONGEST_NAME}")
    for path in final_paths(plan):
        # Not Path.resolve, which fails on links that lead to themselves.
        place = Path(os.path.realpath(path))
        refuse_stream(path)
        if place in sources or place == plan.source.path.resolve():
            raise OutputError(path, "is the model being read", _another())
        if path.is_dir() and not plan.layout.folder:
            suffix = plan.loader.suffix
            raise OutputError(
                path, "is a folder", f"Give the name of a file, such as {path / f'model{suffix}'}"
            )
        if any(place in source.parents for source in sources):
            raise OutputError(path, "holds the model being read", _another())
        # A link that leads nowhere exists too.
        if not os.path.lexists(path):
            continue
        # A record whose model is gone is a left-over of ours.
        if not force and path.name != record_name(plan):
            raise OutputError(path, "exists already", _replace())
        if plan.layout.folder:
            _check_folder(path)
    older = leftovers(plan).replaced
    if older and not force:
        found = f"exists already, as {older[0].name}" + (f" and {len(older) - 1} more" if older[1:] else "")
        raise OutputError(plan.target, found, _replace())


def _check_folder(path: Path) -> None:
    """Refuse to replace a folder in which there is something that no program writes into models."""
    if not path.is_dir():
        raise OutputError(path, "is a file, but the output is a folder", "Choose another name, or remove it")
    names = sorted(entry.name for entry in path.iterdir())
    recorded = recorded_files(path / RECORD)
    recorded |= {RECORD} if recorded else set()
    if names and "config.json" not in names and not recorded:
        raise OutputError(path, "is a folder without a model", "Choose another name, or remove it")

    def foreign_name(name: str) -> bool:
        if name in recorded:
            return False
        inside = {other.partition("/")[2] for other in recorded if other.startswith(f"{name}/")}
        if inside and (path / name).is_dir():
            there = [entry for entry in (path / name).rglob("*") if not entry.is_dir() or entry.is_symlink()]
            return any(entry.relative_to(path / name).as_posix() not in inside for entry in there)
        if (path / name).is_dir():
            return name not in _FOLDERS
        return bool(foreign_names([name], recorded))

    foreign = [name for name in names if foreign_name(name)]
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        found = f"also holds files that are not part of a model: {', '.join(foreign[:3])}{more}"
        raise OutputError(path, found, "Choose another name, or remove it")


def foreign_names(names: Iterable[str], recorded: Container[str]) -> list[str]:
    """Names of files that no program writes into the folder of a model.

    Parameters
    ----------
    names : iterable of str
        Files in the folder; those in folders of it with a slash.
    recorded : container of str
        Files that the record of an export lists.
    """
    usual = [*_OF_MODELS, *(f"*{loader.suffix}" for loader in registry().loaders() if loader.suffix)]
    return [
        name
        for name in names
        if name not in recorded
        and name.partition("/")[0] not in _FOLDERS
        and (name in _OF_TRAINING or "/" in name or not any(fnmatch(name, pattern) for pattern in usual))
    ]


def verify(files: OutputFiles, spans: Sequence[Span], engine: Engine, workers: int | None) -> None:
    """Compare the files with the checksums taken while filling.

    Raises
    ------
    OutputError
        If the disk returns anything other than what was written.
    """
    with engine.compared(files, spans, workers) as checked:
        for span, good in checked:
            if not good:
                file = files.plan.layout.files[span.file].name
                found = (
                    f"bytes {span.offset} to {span.offset + span.nbytes} of {file} are not what was written"
                )
                raise OutputError(files.plan.target, found, "Check the disk, then export again")


def finish(plan: Plan, files: OutputFiles) -> list[Span]:
    """Let the container write what depends on the written weights; returns the checksums of that.

    Raises
    ------
    ConfigError
        If it writes outside of its file, or over a weight.
    OutputError
        If the disk fails.
    """
    if not plan.loader.finishes:
        return []
    spans = []
    for number, file in enumerate(plan.layout.files):
        with files.mapped(number) as content:
            told = plan.loader.finish(file, content)
        for offset, data in told:
            stop = offset + len(data)
            over = any(p.offset < stop and offset < p.offset + p.nbytes for p in file.placements)
            if over or not 0 <= offset <= stop <= file.size:
                what = f"{plan.loader.name}: bytes that finish writes into {file.name}"
                expected = f"a range of the {file.size} bytes of the file that holds no weights"
                raise ConfigError(
                    what, f"{offset} to {stop}", expected, "Report it to the container's authors"
                )
            files.write(number, memoryview(data), offset)
            spans.append(Span(number, offset, len(data), xxhash.xxh3_128_hexdigest(data)))
    return spans


def seal(
    outputs: Sequence[Output],
    reports: Sequence[ExportReport],
    source: Mapping[str, tuple[int, str]],
    engine: Engine,
    workers: int | None,
) -> None:
    """Check and sync all outputs.

    Parameters
    ----------
    outputs : sequence of Output
        Filled.
    reports : sequence of ExportReport
        What is recorded of each.
    source : mapping of str to (int, str)
        Bytes and checksum of each file of the source.
    engine : Engine
        Compares what was written with its checksums.
    workers : int or None
        Threads.

    Raises
    ------
    OutputError
        If an output is damaged.
    """
    for output, report in zip(outputs, reports, strict=True):
        with _said_of(output.plan):
            _check(output, report, source, engine, workers)


def place(
    outputs: Sequence[Output],
    force: bool,
    placing: Callable[[Plan, Sequence[tuple[Path, Path]]], None] | None = None,
) -> None:
    """Put all outputs in place together; afterwards the journals are gone.

    Parameters
    ----------
    outputs : sequence of Output
        Sealed.
    force : bool
        Replace what exists.
    placing : callable, optional
        Called for each before any is put in place, with what will be moved where.

    Raises
    ------
    OutputError
        If an output cannot be put in place.
    """
    with uninterrupted():
        for output in outputs:
            # Again: filling takes long, and something may have been put there meanwhile.
            check_target(output.plan, force)
        if placing is not None:
            for output in outputs:
                placing(output.plan, _moves(output.plan, output.journal))
        for output in outputs:
            with _said_of(output.plan):
                stale = leftovers(output.plan).replaced
                output.journal.place(_moves(output.plan, output.journal), stale)
                sync_folder(output.plan.target.parent)
                output.journal.discard()


@contextlib.contextmanager
def _said_of(plan: Plan) -> Iterator[None]:
    """Turn errors of the operating system into one about the target."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(plan.target, f"cannot be put in place ({error.strerror or error})") from error


def _check(
    output: Output,
    report: ExportReport,
    source: Mapping[str, tuple[int, str]],
    engine: Engine,
    workers: int | None,
) -> None:
    """Compare what is written with its checksums, write the record, and wait for the disk."""
    plan, files, journal = output.plan, output.files, output.journal
    spans = [span for written in journal.done.values() for span in written.spans]
    spans += finish(plan, files)
    with ThreadPoolExecutor(1, "qformats-sync") as background:
        # The disk works while the processor compares.
        synced = background.submit(files.sync)
        verify(files, spans, engine, workers)
        synced.result()
    kept = record(plan, report, source, _covering(output))
    files.close()
    text = json.dumps(kept, indent=1, ensure_ascii=False) + "\n"
    with (journal.files / record_name(plan)).open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(journal.files)


def _covering(output: Output) -> dict[str, list[Piece]]:
    """Checksums of every byte of the files: those taken while filling, and of what lies between."""
    found = {}
    written = sorted(
        (span.file, span.offset, span.nbytes, span.digest, output.slices[index].tensor)
        for index, each in output.journal.done.items()
        for span in each.spans
        if span.nbytes
    )
    for number, file in enumerate(output.plan.layout.files):
        pieces: list[Piece] = []
        end = 0
        for _, offset, nbytes, digest, tensor in (each for each in written if each[0] == number):
            pieces += _gap(output.files, number, end, offset)
            pieces.append(Piece(offset, nbytes, digest, tensor))
            end = offset + nbytes
        pieces += _gap(output.files, number, end, file.size)
        found[file.name] = pieces
    return found


def _gap(files: OutputFiles, file: int, start: int, stop: int) -> list[Piece]:
    return [Piece(start, stop - start, files.digest(file, start, stop - start))] if stop > start else []


def _moves(plan: Plan, journal: Journal) -> list[tuple[Path, Path]]:
    """From where to where, the file that readers open first at the end: while it is missing, there is no model."""
    if plan.layout.folder:
        return [(journal.files, plan.target)]
    names = [record_name(plan), *(file.name for file in reversed(plan.layout.files))]
    return [(journal.files / name, plan.target.with_name(name)) for name in names]
