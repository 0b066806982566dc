"""What is kept beside an output: what happened to each tensor, checksums, and the whole recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qformats.exporting.plan import Plan
from qformats.exporting.report import ExportReport
from qformats.version import __version__
from qformats.work.checksums import ALGORITHM, Piece, file_digest

__all__ = ["record"]


def record(
    plan: Plan,
    report: ExportReport,
    source: Mapping[str, tuple[int, str]],
    checksums: Mapping[str, Sequence[Piece]],
) -> dict[str, Any]:
    """The report without what differs from run to run, with checksums and what is needed to run it again.

    Paths are left out: the record travels with the model.

    Parameters
    ----------
    plan : Plan
        What was carried out.
    report : ExportReport
        Of it.
    source : mapping of str to (int, str)
        Bytes and checksum of each file of the source.
    checksums : mapping of str to sequence of Piece
        Of every file of the output, without gaps.
    """
    kept = report.to_dict()
    # The recipe has the options, without folders.
    for volatile in ("seconds", "resumed", "target", "run_with", "quantizer_options"):
        del kept[volatile]
    kept["source"] = Path(report.source).resolve().name
    for name, value in plan.recipe.quantizer_options:
        if any(option.name == name and option.file for option in plan.quantizer.options):
            kept["calibration"] = kept["calibration"].replace(value, Path(value).name)
    if report.importance is not None:
        kept["importance"]["files"] = [Path(file).name for file in report.importance["files"]]
    return {
        "qformats": __version__,
        **kept,
        "recipe": _recipe(plan, kept["source"], source),
        "checksums": {
            "algorithm": ALGORITHM,
            "files": {name: [piece.text for piece in pieces] for name, pieces in checksums.items()},
        },
    }


def _recipe(plan: Plan, name: str, source: Mapping[str, tuple[int, str]]) -> dict[str, Any]:
    """Everything that decides the bytes of the output, as far as it can be written down."""
    recipe = plan.recipe
    options, files = _options(plan)
    files |= {f"imatrix {i}": _file(Path(file).expanduser()) for i, file in enumerate(recipe.imatrix)}
    measured = recipe.measured
    return {
        "model": {
            "name": name,
            "called": plan.source.name,
            "files": {each: f"{size} {found}" for each, (size, found) in source.items()},
        },
        "format": recipe.format,
        "container": plan.loader.name,
        "quantizer": recipe.quantizer,
        "quantizer_options": options,
        "tensor_types": [list(rule) for rule in recipe.tensor_types],
        "output_type": recipe.output_type,
        "token_embedding_type": recipe.token_embedding_type,
        "pure": recipe.pure,
        "measured": None
        if measured is None
        else {"note": measured.note, "formats": [list(each) for each in measured.formats]},
        "program": recipe.program,
        "imatrix": [Path(file).name for file in recipe.imatrix],
        "options": dict(plan.options),
        "inputs": files,
        "decided_by": dict(plan.source.decided_by),
        "added": {key: value for key, value in plan.extra_identity.items() if key != "importance"},
        "software": plan.software,
    }


def _options(plan: Plan) -> tuple[dict[str, str], dict[str, str]]:
    """Options of the quantizer that affect the result, without folders; and checksums of the files that they name."""
    known = {option.name: option for option in plan.quantizer.options}
    options: dict[str, str] = {}
    files: dict[str, str] = {}
    for name, value in plan.recipe.quantizer_options:
        option = known.get(name)
        if option is not None and not option.decides:
            continue
        options[name] = value
        if option is not None and option.file and Path(value).expanduser().is_file():
            options[name], files[name] = Path(value).name, _file(Path(value).expanduser())
    return options, files


def _file(path: Path) -> str:
    return f"{path.stat().st_size} {file_digest(path)}"
