"""How large a model is, in the few letters of its name."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

__all__ = ["size_label"]


def size_label(parameters: int, stacks: Sequence[tuple[int, ...]] = ()) -> str:
    """Abbreviate a number of parameters as upstream does: ``135M``, ``8.0B``, ``8x7B``.

    Parameters
    ----------
    parameters : int
        All of the model's.
    stacks : sequence of tuple of int
        Shapes of the tensors that hold a matrix of each expert. With any, the size is that of a model with one expert.

    Examples
    --------
    >>> from qformats_gguf.architectures import size_label
    >>> size_label(8_030_261_248)
    '8.0B'
    >>> size_label(46_702_792_704, [(8, 14336, 4096)] * 96)
    '8x7.2B'
    """
    units = ((1e12, "T"), (1e9, "B"), (1e6, "M"))
    experts = sum(shape[0] for shape in stacks) // max(len(stacks), 1)
    parameters -= sum(prod(shape) - prod(shape[1:]) for shape in stacks)
    scale, unit = next(((s, u) for s, u in units if parameters > s), (1e3, "K"))
    scaled = parameters / scale
    digits = len(str(round(scaled)).lstrip("0"))
    return f"{experts}x" * bool(experts) + f"{scaled:.{max(2 - digits, 0)}f}{unit}"
