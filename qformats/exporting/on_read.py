"""A checkpoint that is quantized while it is read."""

from __future__ import annotations

import contextlib
import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from qformats.exporting import Recipe
from qformats.exporting.fill import SLICE_WEIGHTS, encode
from qformats.exporting.plan import Plan, TensorPlan, make_plan
from qformats.exporting.prepare import prepare
from qformats.exporting.run import execute
from qformats.exporting.sound import vanished, warn_of_zeros
from qformats.interfaces.checkpoint import Checkpoint, ReplacedTensors
from qformats.interfaces.packer import PackedTensor
from qformats.interfaces.quantizer import Quantizer
from qformats.interfaces.rows import stack
from qformats.interfaces.stored import StoredTensor
from qformats.sources import open_model
from qformats.work.progress import Progress

__all__ = ["quantized_on_read"]


@contextlib.contextmanager
def quantized_on_read(
    source: Checkpoint, recipe: Recipe, options: Mapping[str, str], progress: Progress
) -> Iterator[Checkpoint]:
    """What an export of the model would hold, tensor by tensor when it is read, under canonical names.

    Nothing is kept of a tensor that has been read. A quantizer that needs the whole model prepares it first, in a
    temporary folder. Where the container of the format joins tensors of this model (queries, keys and values), it is
    exported there, and the export is opened.

    Parameters
    ----------
    source : Checkpoint
        The model.
    recipe : Recipe
        Which tensor gets which format.
    options : mapping of str to str
        Of the loaders.
    progress : Progress
        Receives progress reports.

    Yields
    ------
    Checkpoint
        Valid within the context.

    Raises
    ------
    QFormatsError
        As an export would.
    """
    with tempfile.TemporaryDirectory(prefix="qformats-") as folder:
        target = Path(folder, "model" + recipe.loader(source).suffix)
        plan = make_plan(source, target, recipe, options)
        for note in plan.notes:
            warnings.warn(note, UserWarning, stacklevel=4)
        if not _own_names(plan):
            execute(plan, progress=progress)
            yield open_model(target, options)
            return
        if plan.quantizer.prepares:
            work = Path(folder, "prepared")
            work.mkdir()
            plan = prepare(plan, work, progress)
        converted = {}
        for tensor in plan.tensors:
            # The container may want the rows in another order; they are quantized the same. Nothing is measured.
            own = plan.source.tensors.get(tensor.source.name)
            if own is None:
                # What the container stores of the configuration.
                continue
            draft = replace(tensor.assignment.draft, source=own)
            tensor = replace(tensor, assignment=replace(tensor.assignment, draft=draft), before=None)
            converted[own.name] = _converted(tensor, own, plan.quantizer)
        yield ReplacedTensors(plan.source, converted)


def _own_names(plan: Plan) -> bool:
    """Whether the output consists of the tensors of the source, under whatever names; each with rows to itself."""
    names = {tensor.source.name for tensor in plan.tensors}
    return names >= plan.source.tensors.keys()


def _converted(tensor: TensorPlan, own: StoredTensor, quantizer: Quantizer) -> StoredTensor:
    """A tensor that is converted whenever it is read."""
    packer = tensor.packer
    together = math.lcm(own.step, packer.row_step(own.shape))

    def load(start: int, stop: int) -> PackedTensor:
        pieces = [(at, min(stop, at + size)) for at in range(start, stop, size)] or [(start, stop)]
        done = [_piece(tensor, own, quantizer, *rows) for rows in pieces]
        if len(done) == 1:
            return done[0]
        return stack((stop - start, *own.shape[1:]), done)

    # The slices of an export: where rows that fit are kept beside rows that do not, they decide which.
    size = max(1, own.rows)
    if together:
        size = max(together, SLICE_WEIGHTS // max(1, own.numel // max(1, own.rows)) // together * together)
    return replace(
        own,
        packer=packer,
        nbytes=tensor.nbytes,
        load=load,
        step=together,
        origin=own.stored_packer,
    )


def _piece(
    tensor: TensorPlan, own: StoredTensor, quantizer: Quantizer, start: int, stop: int
) -> PackedTensor:
    part = own.read(start, stop)
    packed, _ = encode(tensor, part, quantizer, start)
    if packed is not part and (zeros := vanished(part, packed)):
        warn_of_zeros([(own.name, zeros, part.shape[0] if len(part.shape) > 1 else 1, packed.format)])
    # A slice packed by itself gets the fields of the whole tensor; a copied one has its own.
    return packed if packed is part else replace(packed, fields={**packed.fields, **tensor.fixed})
