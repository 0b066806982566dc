"""What happened to each tensor of an export."""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from qformats.exporting.account import LeftOut
from qformats.exporting.plan import Action, Plan, TensorPlan
from qformats.exporting.transcode import Measure
from qformats.registry import registry
from qformats.work.shown import Shown, nbytes

__all__ = ["ExportReport", "TensorReport", "answered", "needs_us", "report_of", "run_command"]


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
        ``copied``, ``cast``, ``dequantized``, ``quantized``, ``transcoded`` or ``requantized``.
    note : str
        Why it got a format other than the requested one; empty if it did not.
    source_nbytes, nbytes : int
        Stored bytes before and after.
    kept : bool
        Whether the container never quantizes such a tensor.
    exact : str
        Whether every value stays the same: ``always``, ``never`` or ``needs the data`` as the plan knows it; ``yes``
        or ``no`` once the data has told.
    reason : str
        Why not.
    exact_share : float or None
        Share of the weights of a transcoded or requantized tensor that are in rows which kept every value.
    relative_error, max_error : float or None
        Of such a tensor, and of one that a calibration has quantized:
        :func:`qformats.numbers.error.relative_error`, and largest change of a weight, in weight units.
    vanished : int
        Rows that are all zeros in the output although they are not in the source: too small for the format.
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
    exact: str = ""
    reason: str = ""
    exact_share: float | None = None
    relative_error: float | None = None
    max_error: float | None = None
    vanished: int = 0

    @property
    def rounded(self) -> bool:
        """Whether plain numbers of fewer bits took the place of more exact ones."""
        narrow = self.format.endswith((":f16", ":bf16"))
        return narrow and self.action in ("cast", "dequantized")


@dataclass(frozen=True, repr=False)
class ExportReport(Shown):
    """A whole export, done or planned.

    Attributes
    ----------
    source, target : str
        Paths.
    format, quantizer : str
        The requested ones.
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
    left_out : tuple of LeftOut
        Every tensor of the source that the output does not hold, by name, and why.
    calibration : str
        What the quantizer calibrated on, such as ``"128 x 2,048 tokens of corpus.txt"``; empty if it did not.
    calibration_sha256 : str
        Of these tokens, as int64 in little-endian order.
    quantizer_options : dict of str to str
        Those that were set and affect the result.
    importance : dict or None
        Provenance of the importance matrices that errors were weighed by: their ``files``, ``datasets``, ``entries``,
        ``chunks`` and ``chunk_size``.
    unweighed : tuple of str
        Tensors that these have no entry for.
    notes : tuple of str
        What was left out or decided besides: a sentence each, without the full stop.
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
    left_out: tuple[LeftOut, ...] = ()
    calibration: str = ""
    calibration_sha256: str = ""
    quantizer_options: dict[str, str] = field(default_factory=dict)
    importance: dict[str, Any] | None = None
    unweighed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    resumed: int = 0

    @property
    def bits_per_weight(self) -> float:
        """Mean stored bits per weight in the output."""
        return self.nbytes * 8 / max(1, self.parameters)

    @property
    def types(self) -> dict[str, int]:
        """How many tensors have each format."""
        return dict(Counter(tensor.format for tensor in self.tensors).most_common())

    def _shown_facts(self) -> dict[str, str]:
        return {
            "target": self.target,
            "format": self.format,
            "quantizer": f"quantizer {self.quantizer}",
            "tensors": f"{len(self.tensors):,} tensors",
            "weights": f"{self.parameters:,} weights",
            "bytes": nbytes(self.file_nbytes),
            "bits": f"{self.bits_per_weight:.4g} bits per weight",
            "source": f"from {self.source}",
        }

    def _shown_rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("format", "tensors", "bytes")]
        for name, count in self.types.items():
            stored = sum(tensor.nbytes for tensor in self.tensors if tensor.format == name)
            rows.append((name, f"{count:,}", f"{stored:,}"))
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        plain = {**asdict(self), "bits_per_weight": self.bits_per_weight, "types": self.types}
        for tensor in plain["tensors"]:
            if tensor["relative_error"] == math.inf:
                # Zeros that are none any more; JSON has no infinity.
                tensor["relative_error"] = None
        return plain


def report_of(
    plan: Plan,
    seconds: float = 0.0,
    resumed: int = 0,
    measures: Mapping[int, Measure] | None = None,
    vanished: Mapping[int, int] | None = None,
) -> ExportReport:
    """Report of a plan.

    Parameters
    ----------
    plan : Plan
        What was planned.
    seconds, resumed
        See :class:`ExportReport`.
    measures : mapping of int to Measure, optional
        How the values of transcoded and requantized tensors changed, by index; only once they are written.
    vanished : mapping of int to int, optional
        Rows of each tensor that became zeros, by index.
    """
    default = registry().packer(plan.recipe.format)
    importance = plan.source.importance
    zeros = vanished or {}
    tensors = tuple(
        replace(_tensor(t, (measures or {}).get(i)), vanished=zeros.get(i, 0))
        for i, t in enumerate(plan.tensors)
    )
    return ExportReport(
        source=str(plan.source.path),
        target=str(plan.target),
        format=default.name,
        quantizer=plan.recipe.quantizer,
        architecture=plan.source.architecture,
        parameters=sum(t.source.numel for t in plan.tensors),
        source_nbytes=sum(t.source_nbytes for t in tensors),
        nbytes=sum(t.nbytes for t in tensors),
        file_nbytes=plan.layout.nbytes,
        files=tuple((file.name, file.size) for file in plan.layout.files),
        tensors=tensors,
        run_with=run_command(plan, str(_opened_first(plan))),
        left_out=plan.left_out,
        calibration=plan.source.calibration,
        calibration_sha256=plan.source.calibration_sha256,
        quantizer_options=_options(plan),
        importance=None if importance is None else importance.provenance,
        unweighed=() if importance is None else tuple(t.name for t in plan.tensors if t.unweighed),
        notes=(*plan.source.notes, *plan.layout.notes, *plan.notes),
        seconds=seconds,
        resumed=resumed,
    )


def _options(plan: Plan) -> dict[str, str]:
    aside = {option.name for option in plan.quantizer.options if not option.decides}
    return {name: value for name, value in plan.recipe.quantizer_options if name not in aside}


def answered(report: ExportReport, reasons: Mapping[int, str]) -> ExportReport:
    """Report of a plan after the data has told which tensors can keep every value.

    Parameters
    ----------
    report : ExportReport
        Of the plan.
    reasons : mapping of int to str
        Why not, by index of the tensor; empty for those that can.
    """
    tensors = list(report.tensors)
    for index, reason in reasons.items():
        tensor = replace(tensors[index], exact="no" if reason else "yes", reason=reason)
        if reason and tensor.action == Action.TRANSCODE:
            tensor = replace(tensor, action=Action.REQUANTIZE.value)
        tensors[index] = tensor
    return replace(report, tensors=tuple(tensors))


def _tensor(plan: TensorPlan, measure: Measure | None) -> TensorReport:
    draft = plan.assignment.draft
    report = TensorReport(
        plan.name,
        draft.source.name,
        draft.source.shape,
        plan.source_format,
        plan.packer.name,
        plan.action.value,
        plan.assignment.note,
        draft.source.nbytes,
        plan.nbytes,
        plan.assignment.kept,
        plan.exact.value,
        plan.reason,
    )
    if measure is None:
        return report
    exact = measure.exact == measure.weights
    if plan.action in (Action.COPY, Action.CAST, Action.DEQUANTIZE):
        return replace(
            report,
            exact="no" if measure.squared_error else plan.exact.value,
            reason=measure.reason if measure.squared_error else plan.reason,
            relative_error=measure.relative_error,
            max_error=measure.max_error,
        )
    if plan.action is Action.QUANTIZE:
        # Prepared, from plain numbers: that they are rounded is no news, and by how much is recorded.
        return replace(report, relative_error=measure.relative_error, max_error=measure.max_error)
    return replace(
        report,
        action=(Action.TRANSCODE if exact else Action.REQUANTIZE).value,
        exact="yes" if exact else "no",
        reason="" if exact else measure.reason,
        exact_share=measure.exact / measure.weights if measure.weights else 1.0,
        relative_error=measure.relative_error,
        max_error=measure.max_error,
    )


def _opened_first(plan: Plan) -> Path:
    """Path by which a program opens the output."""
    return plan.target if plan.layout.folder else plan.target.with_name(plan.layout.files[0].name)


def run_command(plan: Plan, path: str, command: str = "") -> str:
    """Command line that uses the output at a path, quoted for a shell; empty if the container has none.

    Parameters
    ----------
    plan : Plan
        Of the output.
    path : str
        Where it lies.
    command : str
        With ``{target}`` for the path, if not the container's own.
    """
    # A leading dash would be taken for an option.
    shown = shlex.quote(f"./{path}" if path.startswith("-") else path)
    return (command or plan.layout.run_with).replace("{target}", shown)


def needs_us(target: Path) -> bool:
    """Whether Transformers knows the quantization method of a folder only from here."""
    config = target / "config.json"
    if not config.is_file():
        return False
    declared = json.loads(config.read_bytes()).get("quantization_config") or {}
    return bool(declared.get("quant_method") == "qformats")
