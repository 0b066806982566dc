"""What became of each tensor of an export."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import qformats
from qformats.exporting.plan import Plan

__all__ = ["ExportReport", "TensorReport", "record", "report_of"]


@dataclass(frozen=True)
class TensorReport:
    """One tensor.

    Attributes
    ----------
    name, source_name : str
        Name in the output, and canonical name.
    shape : tuple of int
        Shape in the output.
    source_format, format : str
        ``family:variant`` before and after.
    action : str
        ``copied``, ``cast``, ``dequantized``, ``quantized`` or ``requantized``.
    note : str
        Why it got another format than the one asked for; empty if it did not.
    source_nbytes, nbytes : int
        Stored bytes before and after.
    kept : bool
        Whether the container never quantizes such a tensor.
    """

    name: str
    source_name: str
    shape: tuple[int, ...]
    source_format: str
    format: str
    action: str
    note: str
    source_nbytes: int
    nbytes: int
    kept: bool = False

    @property
    def rounded(self) -> bool:
        """Whether plain numbers of fewer bits took the place of more exact ones."""
        narrow = self.format.endswith((":f16", ":bf16"))
        return narrow and self.action in ("cast", "dequantized")


@dataclass(frozen=True)
class ExportReport:
    """A whole export, done or planned.

    Attributes
    ----------
    source, target : str
        Paths.
    format, quantizer : str
        What was asked for.
    architecture : str
        Of the model.
    parameters : int
        Number of weights.
    source_nbytes, nbytes : int
        Stored bytes of all tensors, before and after.
    file_nbytes : int
        Exact bytes of all files of the output.
    files : tuple of (str, int)
        Names and exact sizes.
    tensors : tuple of TensorReport
        In output order.
    run_with : str
        Command line that uses the result.
    seconds : float
        Wall time; 0 for a plan.
    resumed : int
        Slices taken over from an interrupted run.
    """

    source: str
    target: str
    format: str
    quantizer: str
    architecture: str
    parameters: int
    source_nbytes: int
    nbytes: int
    file_nbytes: int
    files: tuple[tuple[str, int], ...]
    tensors: tuple[TensorReport, ...]
    run_with: str
    seconds: float = 0.0
    resumed: int = 0

    @property
    def bits_per_weight(self) -> float:
        """Mean stored bits a weight in the output."""
        return self.nbytes * 8 / max(1, self.parameters)

    @property
    def types(self) -> dict[str, int]:
        """How many tensors have each format."""
        return dict(Counter(tensor.format for tensor in self.tensors).most_common())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "bits_per_weight": self.bits_per_weight, "types": self.types}


def report_of(plan: Plan, seconds: float = 0.0, resumed: int = 0) -> ExportReport:
    """Report of a plan."""
    default = qformats.packer(plan.recipe.format)
    tensors = tuple(
        TensorReport(
            t.name,
            t.assignment.draft.source.name,
            t.assignment.draft.source.shape,
            t.source_format,
            t.packer.name,
            t.action.value,
            t.assignment.note,
            t.assignment.draft.source.nbytes,
            t.nbytes,
            t.assignment.kept,
        )
        for t in plan.tensors
    )
    return ExportReport(
        source=str(plan.source.path),
        target=str(plan.target),
        format=default.name,
        quantizer=plan.recipe.quantizer,
        architecture=plan.source.architecture,
        parameters=sum(t.assignment.draft.source.numel for t in plan.tensors),
        source_nbytes=sum(t.source_nbytes for t in tensors),
        nbytes=sum(t.nbytes for t in tensors),
        file_nbytes=plan.layout.nbytes,
        files=tuple((file.name, file.size) for file in plan.layout.files),
        tensors=tensors,
        run_with=plan.layout.run_with.replace("{target}", _shown(plan)),
        seconds=seconds,
        resumed=resumed,
    )


def _shown(plan: Plan) -> str:
    """What a program is given to open the output, quoted for a shell."""
    first = plan.target if plan.layout.folder else plan.target.with_name(plan.layout.files[0].name)
    # A leading dash would be taken for an option.
    return shlex.quote(f"./{first}" if str(first).startswith("-") else str(first))


def record(report: ExportReport) -> dict[str, Any]:
    """What is kept beside the output: the report without what differs from run to run."""
    kept = report.to_dict()
    for volatile in ("seconds", "resumed", "target", "run_with"):
        del kept[volatile]
    kept["source"] = Path(report.source).resolve().name
    return {"qformats": qformats.__version__, **kept}
