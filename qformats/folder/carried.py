"""Numbers for activations that a folder takes over from the model it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qformats.interfaces.activations import Step, forgotten
from qformats.interfaces.checkpoint import Checkpoint
from qformats.interfaces.family import Family
from qformats.interfaces.layout import Assignment
from qformats.interfaces.packer import Packer
from qformats.interfaces.step_numbers import placed
from qformats.interfaces.stored import StoredTensor
from qformats.registry import registry

__all__ = ["carried", "declared", "dropped"]

_CACHE = ("key", "value")


def carried(assignments: Sequence[Assignment], source: Checkpoint) -> list[Assignment]:
    """Further tensors of a folder: numbers for activations, where its format has a place for them.

    Programs want a number for every layer of a format, or for none; and one for keys and values of every layer.

    Parameters
    ----------
    assignments : sequence of Assignment
        All tensors of the folder.
    source : Checkpoint
        The model.
    """
    packed = {a.draft.name.removesuffix(".weight"): a.packer for a in assignments if a.packer.quantizes}
    if not packed or not source.steps:
        return []
    family = registry().family(next(iter(packed.values())))
    inputs = {step.module: step for step in source.steps if step.role == "input"}
    kept: list[Step] = []
    for format in dict.fromkeys(packer.name for packer in packed.values()):
        modules = [name for name, packer in packed.items() if packer.name == format]
        if all(name in inputs and family.place(inputs[name], packed[name]) for name in modules):
            kept += [inputs[name] for name in modules]
    attention = [step for step in source.steps if step.role in _CACHE]
    owners = {role: {step.module for step in attention if step.role == role} for role in _CACHE}
    layers = {
        name.rpartition(".")[0] for name in packed if name.endswith((".k_proj", ".v_proj", ".qkv_proj"))
    }
    if attention and owners["key"] == owners["value"] == (layers or owners["key"]):
        kept += [step for step in attention if family.place(step, None)]
    return [_assignment(family, step, packed.get(step.module), source.steps[step]) for step in kept]


def _assignment(family: Family, step: Step, packer: Packer | None, stored: StoredTensor) -> Assignment:
    place = family.place(step, packer)
    assert place is not None
    return placed(step, place, stored)


def declared(
    config: Mapping[str, Any], family: Family, assignments: Sequence[Assignment], source: Checkpoint
) -> dict[str, Any]:
    """A ``quantization_config`` with what it says of activations."""
    steps = [a.draft.step for a in assignments if a.draft.step is not None]
    before = source.declaration if source.declared_by == family.name else {}
    return family.with_steps(config, steps, before)


def dropped(source: Checkpoint, config: Mapping[str, Any] | None) -> tuple[str, ...]:
    """What the source declares of activations and an output with this ``quantization_config`` does not.

    Parameters
    ----------
    source : Checkpoint
        The model.
    config : mapping or None
        ``None`` for an output that declares nothing.

    Returns
    -------
    tuple of str
        A sentence each, without the full stop.
    """
    if not source.schemes:
        return ()
    known = next((found for each in registry().families() if config and (found := each.schemes(config))), ())
    return forgotten(source.schemes, known)
