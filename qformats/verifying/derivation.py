"""Whether a model derives from a source by the recipe that its record has.

The plan of the export is made anew from the source. Every slice that it converts without a calibration is converted
again and compared with the bytes of the file; of tensors whose codes a calibration has chosen, the distance from the
source is measured again and compared with the recorded one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qformats.errors import ConfigError, QFormatsError
from qformats.exporting.again import Again
from qformats.exporting.fill import Places, Slice, bytes_of, encode, in_slices, slices_of, source_bytes
from qformats.exporting.plan import Action, Plan, TensorPlan, make_plan
from qformats.exporting.transcode import Measure, compared, total
from qformats.interfaces.checkpoint import Checkpoint
from qformats.interfaces.packer import PackedTensor
from qformats.numbers.dtypes import torch_dtype
from qformats.verifying.collecting import Findings, clause
from qformats.verifying.report import Derivation
from qformats.work.files import map_file
from qformats.work.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["derive"]

_SLACK = 1 + 1e-6
"""Sums of squares may be added in another order."""
_KEPT = (Action.COPY, Action.CAST, Action.DEQUANTIZE)


@dataclass(frozen=True)
class _Compared:
    """One slice: whether the recipe gives its bytes again, how far both are from the source."""

    same: bool
    found: Measure | None = None
    again: Measure | None = None


def derive(
    again: Again, source: Checkpoint, findings: Findings, workers: int, progress: Progress
) -> Derivation | None:
    """Compare a model with what its recipe makes of a source.

    Returns
    -------
    Derivation or None
        ``None`` if the recipe makes nothing like it of this source; then that is a finding.
    """
    record = again.record
    other = again.other_source(source, workers, progress)
    try:
        plan = make_plan(again.renamed(source), record.target, again.recipe, again.options)
    except QFormatsError as error:
        findings.add("source", f"the recipe does not fit this source: {clause(error)}")
        return None
    planned = {
        record.target.name if not plan.layout.folder else file.name: file.size for file in plan.layout.files
    }
    if len(plan.layout.files) > 1 or plan.layout.folder:
        planned = {file.name: file.size for file in plan.layout.files}
    actual = {
        record.file(name).name if len(record.sizes) == 1 else name: n for name, n in record.sizes.items()
    }
    if planned != actual:
        names = sorted(n for n in planned.keys() | actual.keys() if planned.get(n) != actual.get(n))
        findings.add("source", f"the recipe makes other files of this source: {', '.join(names[:3])}")
        return None
    if record.wrong_sizes():
        # They are findings already, and cannot be compared byte by byte.
        return None
    found = _Files(plan, again)
    _check_headers(plan, found, findings)
    slices = slices_of(plan)
    results: dict[int, dict[int, _Compared]] = {}
    progress.start("making it again from the source", sum(source_bytes(plan, each) for each in slices))
    with in_slices(plan, lambda piece: _compare(plan, piece, found, findings), slices, workers) as done:
        for piece, result in done:
            results.setdefault(piece.tensor, {})[piece.index] = result
            progress.advance(source_bytes(plan, piece))
    same = exact = within = 0
    largest: float | None = None
    recorded = {t["name"]: t for t in record.content["tensors"] if isinstance(t, dict) and "name" in t}
    for index, tensor in enumerate(plan.tensors):
        pieces = [results[index][key] for key in sorted(results.get(index, {}))]
        told = recorded.get(tensor.name, {})
        if _judge(tensor, pieces, told, findings):
            same += all(each.same for each in pieces)
            within += not all(each.same for each in pieces)
            exact += told.get("exact") in ("always", "yes")
            lost = told.get("relative_error")
            if isinstance(lost, int | float) and lost > 0:
                largest = max(largest or 0.0, float(lost))
    return Derivation(str(source.path), not other, same, exact, within, largest)


class _Files:
    """The files of the model, mapped."""

    def __init__(self, plan: Plan, again: Again) -> None:
        self.places = Places(plan)
        names = (
            list(again.record.sizes) if len(again.record.sizes) == 1 else [f.name for f in plan.layout.files]
        )
        self.mapped: list[Tensor | None] = [
            map_file(again.record.file(name)) if again.record.sizes[name] else None for name in names
        ]

    def content(self, file: int, offset: int, nbytes: int) -> Tensor:
        """Bytes of a file, uint8."""
        import torch

        mapped = self.mapped[file]
        return torch.empty(0, dtype=torch.uint8) if mapped is None else mapped[offset : offset + nbytes]

    def part(self, piece: Slice, tensor: TensorPlan) -> PackedTensor:
        """A slice as the files hold it."""
        shape = (piece.stop - piece.start, *tensor.source.shape[1:]) if tensor.source.shape else ()
        stored = tensor.packer.stored(shape)
        fields: dict[str, Tensor] = {**tensor.fixed}
        for file, offset, nbytes, field in self.places.places(piece):
            dims, dtype = stored[field]
            if field in tensor.fixed:
                continue
            # Copied, since files align less than dtypes ask for.
            fields[field] = self.content(file, offset, nbytes).clone().view(torch_dtype(dtype)).reshape(dims)
        return PackedTensor(tensor.packer, shape, fields)


def _check_headers(plan: Plan, found: _Files, findings: Findings) -> None:
    """What the plan knows before any weight is read; not where the container adds to it afterwards."""
    for number, file in enumerate(plan.layout.files):
        for offset, content in ((0, file.header), *file.parts) if not plan.loader.finishes else ():
            if bytes(found.content(number, offset, len(content)).numpy()) != content:
                told = "its header" if file.placements else "it"
                findings.add("source", f"{told} is not what the recipe makes of this source", file=file.name)
                break


def _compare(plan: Plan, piece: Slice, found: _Files, findings: Findings) -> _Compared:
    tensor = plan.tensors[piece.tensor]
    with findings.about("source", file=tensor.source.file.name, tensor=tensor.name):
        part = tensor.source.read(piece.start, piece.stop)
        chosen = plan.quantizer.prepares and tensor.action not in _KEPT
        measure: Measure | None = None
        if not chosen:
            packed, measure = encode(tensor, part, plan.quantizer, piece.start)
            fields = packed.fields if packed is part else {**packed.fields, **tensor.fixed}
            if _same(fields, piece, found):
                return _Compared(True, measure, measure)
            measure = measure or compared(part, packed, "")
        held = found.part(piece, tensor)
        if chosen and held.format == part.format and _same(part.fields, piece, found):
            return _Compared(True)
        return _Compared(False, compared(part, held, ""), measure)
    # An error is a finding already.
    return _Compared(False)


def _same(fields: Mapping[str, Tensor], piece: Slice, found: _Files) -> bool:
    """Whether the files hold these fields."""
    for file, offset, nbytes, field in found.places.places(piece):
        held: Any = found.content(file, offset, nbytes).numpy()
        if field not in fields or bytes_of(fields[field]) != held.data:
            return False
    return True


def _judge(
    tensor: TensorPlan, pieces: list[_Compared], told: Mapping[str, object], findings: Findings
) -> bool:
    """Whether a tensor is what the recipe makes of it, or as close to the source as was recorded."""
    if all(each.same for each in pieces):
        return True
    place = {"tensor": tensor.name}
    measures = [each.found for each in pieces if each.found is not None]
    if any(each.found is None and not each.same for each in pieces):
        return False
    if tensor.action in _KEPT and not told.get("relative_error"):
        findings.add("source", f"its bytes are not those that the source gives ({tensor.action})", **place)
        return False
    now = total(measures)
    if told.get("exact") == "yes":
        if now.squared_error == 0:
            return True
        findings.add(
            "source", f"recorded as exact, but its relative error is {now.relative_error:.3g}", **place
        )
        return False
    bound, whose = told.get("relative_error"), "was recorded"
    if not isinstance(bound, int | float):
        bounds = [each.again for each in pieces if each.again is not None]
        if not bounds:
            findings.add("source", "no error is recorded that it could be compared with", **place)
            return False
        bound, whose = total(bounds).relative_error, "the recipe gives"
    if now.relative_error <= float(bound) * _SLACK:
        return True
    found = f"its relative error to the source is {now.relative_error:.6g}, and {float(bound):.6g} {whose}"
    findings.add("source", found, **place)
    return False


def require_recipe(again: Again | None, model: object) -> Again:
    """Refuse to compare a model with a source if nothing tells how it was made.

    Raises
    ------
    ConfigError
        If there is no recipe.
    """
    if again is None:
        expected = "no source for a model without a record: qformats compare measures how far they are apart"
        raise ConfigError("against", str(model), expected)
    return again
