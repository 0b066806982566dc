"""Prepare: what a quantizer does with the whole model before any tensor is written."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qformats.errors import (
    BackendUnavailableError,
    CheckpointError,
    NonFiniteError,
    OutputError,
    UnsupportedModelError,
    WeightsError,
    spelled,
)
from qformats.exact import Answer
from qformats.exporting.fill import slices_of, source_bytes
from qformats.exporting.journal import unwritable
from qformats.exporting.plan import Action, Plan, TensorPlan, make_plan
from qformats.exporting.recipe import Recipe
from qformats.exporting.transcode import transcode
from qformats.interfaces.packer import PackedTensor, Packer
from qformats.interfaces.quantizer import Quantizer
from qformats.numbers.quantized import QuantizedTensor
from qformats.registry import registry
from qformats.work.ownership import open_private, own_folder, token
from qformats.work.progress import Progress
from qformats.work.targets import hidden_beside

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Workspace", "prepare"]

SUFFIX = ".qformats-prepared"
_IDENTITY = "identity"
_LOCK = "lock"


class Workspace:
    """Folder beside the target where a quantizer keeps what it has finished, to go on from there after a kill.

    Parameters
    ----------
    plan : Plan
        What is prepared; the work of another plan is discarded.

    Raises
    ------
    OutputError
        If the place cannot be written, or another process is at work there.
    """

    def __init__(self, plan: Plan) -> None:
        self.folder = hidden_beside(plan.target, plan.partial_name, SUFFIX)
        self.files = self.folder / "files"
        self._lock = -1
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            own_folder(self.folder, plan.target)
            self._lock = open_private(self.folder / _LOCK, os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                found = "is being written by another process"
                raise OutputError(plan.target, found, "Wait for it, or stop it") from error
            self._claim(replace(plan, recipe=_deciding(plan.recipe)).identity([]))
        except OSError as error:
            self.close()
            raise error if isinstance(error, OutputError) else unwritable(plan.target, error) from error

    def _claim(self, identity: str) -> None:
        """Keep the work of the same plan, if this user has done it; discard any other."""
        mark = self.folder / _IDENTITY
        # Codes that a stranger has put there would be written as those of the model.
        wanted = token(self.folder, identity)
        if mark.is_symlink() or not mark.is_file() or mark.read_text() != wanted:
            if self.files.is_symlink():
                self.files.unlink()
            shutil.rmtree(self.files, ignore_errors=True)
            mark.unlink(missing_ok=True)
            mark.write_text(wanted)
        self.files.mkdir(exist_ok=True)

    def close(self) -> None:
        """Let go of it but keep what is in it."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def discard(self) -> None:
        """Remove it."""
        shutil.rmtree(self.files, ignore_errors=True)
        with contextlib.suppress(OSError):
            (self.folder / _IDENTITY).unlink()
            (self.folder / _LOCK).unlink()
            self.folder.rmdir()
        self.close()


def prepare(plan: Plan, workspace: Path, progress: Progress) -> Plan:
    """Let the quantizer work on the whole model; the plan of what is then left to write.

    It gets the plain weights and, decoded, the quantized ones that must be rounded again. Tensors that can
    keep their values in the new format are transcoded as without it; where all can, it has nothing to do.

    Parameters
    ----------
    plan : Plan
        Of the model as it is.
    workspace : Path
        Where the quantizer may keep what it has finished.
    progress : Progress
        Receives progress reports.
    """
    recipe = plan.recipe
    rounded = [_rounded(plan, index, progress) for index in range(len(plan.tensors))]
    wanted = {name: tensor for tensor in rounded if tensor is not None for name in _layers(tensor)}
    if not wanted:
        return plan
    formats = {name: tensor.calibrates for name, tensor in wanted.items()}
    try:
        prepared = plan.quantizer.prepare(plan.source, formats, workspace, progress)
    except (BackendUnavailableError, CheckpointError, UnsupportedModelError) as error:
        # Whoever asked for a format that is calibrated by default need not know that there is another way.
        if "rtn" not in str(error):
            how = spelled("--quantizer rtn", "quantizer='rtn'")
            error.advise(f"each tensor can be rounded by itself, without calibration: {how}")
        raise
    prepared.fingerprint = plan.fingerprint
    # Reports describe the original model, not intermediate steps.
    prepared.tensors = {
        name: replace(tensor, nbytes=plan.source.tensors[name].nbytes)
        for name, tensor in prepared.tensors.items()
    }
    left = make_plan(
        prepared, plan.target, _deciding(recipe), plan.options, extra_identity=plan.extra_identity
    )
    known = {tensor.name: tensor for tensor in plan.tensors}
    files = set(plan.source.files)
    tensors = tuple(
        _as_rounded(tensor, wanted, known.get(tensor.name), changed=tensor.source.file not in files)
        for tensor in left.tensors
    )
    return replace(left, tensors=tensors, quantizer=plan.quantizer)


def _deciding(recipe: Recipe) -> Recipe:
    """A recipe without the quantizer's options that do not affect the result: they may change between two runs."""
    aside = {option.name for option in registry().quantizer(recipe.quantizer).options if not option.decides}
    kept = tuple(option for option in recipe.quantizer_options if option[0] not in aside)
    return replace(recipe, quantizer_options=kept)


def _rounded(plan: Plan, index: int, progress: Progress) -> TensorPlan | None:
    """A tensor whose codes are to be chosen, with the reason why it cannot stay unchanged; ``None`` for others."""
    tensor = plan.tensors[index]
    match tensor.action:
        case Action.QUANTIZE | Action.REQUANTIZE:
            return tensor
        case Action.TRANSCODE if tensor.exact is not Answer.ALWAYS:
            reason = _mostly_rounded(plan, index, progress)
            return replace(tensor, reason=reason) if reason else None
    return None


def _mostly_rounded(plan: Plan, index: int, progress: Progress) -> str:
    """Why most weights of a tensor would be rounded if it were transcoded; empty if they would not.

    Where most are rounded, it is better to choose all codes with the whole model at hand.
    """
    tensor = plan.tensors[index]
    source = tensor.source
    counting, reason = _Counting(), ""
    progress.start(f"looking at {tensor.name}", source.nbytes)
    for piece in slices_of(replace(plan, tensors=(tensor,))):
        part = source.read(piece.start, piece.stop)
        try:
            _, measure = transcode(part, tensor.keeps, counting)
        except NonFiniteError as error:
            raise WeightsError(str(source.file), source.name, error.found, error.hint) from error
        reason = reason or measure.reason
        progress.advance(source_bytes(plan, replace(piece, tensor=index)))
    return reason if 2 * counting.weights > math.prod(source.shape) else ""


class _Counting(Quantizer):
    """Counts the weights that it is asked to round."""

    name = "counting"

    def __init__(self) -> None:
        self.weights = 0

    def quantize(self, weight: Tensor, packer: Packer, importance: Tensor | None = None) -> QuantizedTensor:
        """Round by the format's own rule."""
        return registry().quantizer("rtn").quantize(weight, packer, importance)

    def encode(self, dense: Tensor, packer: Packer, importance: Tensor | None = None) -> PackedTensor:
        """Count, and round by the format's own rule."""
        self.weights += dense.numel()
        return packer.encode_reference(dense)


def _layers(tensor: TensorPlan) -> tuple[str, ...]:
    """Layers of the model whose weights a tensor holds: of a stack, each matrix; parts of one layer are none."""
    matrices = tensor.source.matrices
    return matrices if matrices and len(set(matrices)) == len(matrices) else (tensor.source.name,)


def _as_rounded(
    tensor: TensorPlan, wanted: dict[str, TensorPlan], earlier: TensorPlan | None, *, changed: bool
) -> TensorPlan:
    """A tensor that was quantized before, as what the quantizer made of it: its format is the new one by now.

    One that stays plain may be changed along with the weights, as a norm that takes over their scales; then it knows
    what it was.
    """
    before = wanted.get(_layers(tensor)[0])
    if before is None:
        same = earlier is not None and earlier.source.shape == tensor.source.shape
        plain = tensor.action in (Action.COPY, Action.CAST, Action.DEQUANTIZE)
        return replace(tensor, before=earlier.source) if earlier and same and plain and changed else tensor
    packed = tensor.source.format == tensor.packer.name
    old = before.assignment.draft.source if packed else None
    if before.action is Action.QUANTIZE:
        return replace(tensor, before=old)
    return replace(tensor, action=Action.REQUANTIZE, exact=Answer.NEVER, reason=before.reason, before=old)
