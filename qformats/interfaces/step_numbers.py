"""Numbers for activations on their way into another container: the same, or the other way up."""

from __future__ import annotations

from dataclasses import replace

from qformats.errors import CheckpointError
from qformats.interfaces.activations import Place, Step
from qformats.interfaces.dense import dense
from qformats.interfaces.layout import Assignment, Draft
from qformats.interfaces.packer import PackedTensor, Packer
from qformats.interfaces.stored import StoredTensor

__all__ = ["placed"]

_WHY = "a number for activations, carried along"


def placed(step: Step, place: Place, stored: StoredTensor, packer: Packer | None = None) -> Assignment:
    """The tensor that holds such a number in an output.

    Parameters
    ----------
    step : Step
        What it stands for.
    place : Place
        Where it goes.
    stored : StoredTensor
        What the source holds.
    packer : Packer, optional
        Plain format of the container; by default plain numbers of the source's dtype, or float32 for a reciprocal.

    Raises
    ------
    CheckpointError
        If the source holds more than one number; when it is read, if it has no reciprocal.

    Examples
    --------
    >>> import dataclasses, qformats
    >>> from qformats.interfaces import Place, Step, placed
    >>> norm = qformats.open("demo").tensors["model.norm.weight"].slice_rows(0, 1)
    >>> step = Step("input", "fp8", "model.layers.0.mlp.up_proj")
    >>> placed(step, Place("model.layers.0.mlp.up_proj.input_scale", shape=()), norm).draft.source.shape
    ()
    """
    if stored.numel != 1:
        raise CheckpointError(stored.file, f"has shape {stored.shape}", "one number", tensor=stored.name)
    other_way = place.divides != step.divides
    plain = packer or dense("f32" if other_way else stored.packer.dense_dtype or "f32")
    dtype = plain.dense_dtype or "f32"

    def load(start: int, stop: int) -> PackedTensor:
        import torch

        from qformats.numbers.dtypes import torch_dtype

        values = stored.read().dequantize().reshape(place.shape)
        if other_way:
            if not bool(((values > 0) & values.isfinite()).all()):
                found = f"holds {float(values.flatten()[0])}, which has no reciprocal"
                raise CheckpointError(stored.file, found, "a finite number above 0", tensor=stored.name)
            values = torch.reciprocal(values)
        return PackedTensor(dense(dtype), place.shape, {"weight": values.to(torch_dtype(dtype))})

    source = replace(stored, shape=place.shape, packer=dense(dtype), load=load, step=1)
    draft = Draft(place.name, source, keep=plain.name, why=_WHY, step=step)
    return Assignment(draft, plain, _WHY, kept=True)
