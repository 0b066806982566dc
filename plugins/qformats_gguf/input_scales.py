"""Factors of activations beside matrices in nvfp4: ``NAME.input_scale``, one float32 number, as ModelOpt has it.

Source: llama.cpp:src/llama-model.cpp (``create_tensor`` of ``input_scale``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qformats import Checkpoint, StoredTensor
from qformats.interfaces import Assignment, Place, Step, placed
from qformats_gguf.types import by_name

__all__ = ["INPUT_FACTOR", "input_scales", "steps"]

INPUT_FACTOR = ".input_scale"
_NUMBERS = "nvfp4"
_WEIGHT = ".weight"


def steps(stored: Mapping[str, StoredTensor], parts: Mapping[str, list[str]]) -> dict[Step, StoredTensor]:
    """Those of a file, by the module that its matrix is; joined matrices, and stacks, have none elsewhere.

    Parameters
    ----------
    stored : mapping of str to StoredTensor
        All tensors of the file.
    parts : mapping of str to list of str
        Canonical names of what each consists of.
    """
    found = {}
    for name, tensor in stored.items():
        weight = name.removesuffix(INPUT_FACTOR) + _WEIGHT
        whole = parts.get(weight, [])
        if name.endswith(INPUT_FACTOR) and len(whole) == 1 and tensor.numel == 1:
            found[Step("input", _NUMBERS, whole[0].removesuffix(_WEIGHT))] = tensor
    return found


def input_scales(assignments: Sequence[Assignment], source: Checkpoint) -> list[Assignment]:
    """Further tensors of a file: factors of matrices in nvfp4, if all of them have one.

    Between GGUF files they are among the tensors already.
    """
    from qformats_gguf.packers import packer_of

    own = {step.module: step for step in source.steps if (step.role, step.numbers) == ("input", _NUMBERS)}
    if not own or source.container == "gguf":
        return []
    packed = [a.draft for a in assignments if a.packer.spec.variant == _NUMBERS]
    modules = [draft.source.name.removesuffix(_WEIGHT) for draft in packed]
    if not all(
        module in own and len(draft.source.shape) == 2 for module, draft in zip(modules, packed, strict=True)
    ):
        return []
    return [
        placed(
            own[module],
            Place(draft.name.removesuffix(_WEIGHT) + INPUT_FACTOR),
            source.steps[own[module]],
            packer_of(by_name("f32")),
        )
        for module, draft in zip(modules, packed, strict=True)
    ]
