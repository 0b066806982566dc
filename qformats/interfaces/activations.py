"""How activations are quantized while a model runs: what folders declare of it, and the numbers they keep for it.

Weights do without either. Both are carried into an output that can say the same, and named where it cannot.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Place", "Scheme", "Step", "forgotten"]

_ROLES = {
    "input": "inputs of layers",
    "output": "outputs of layers",
    "cache": "keys and values in the cache",
}
_NUMBERS = {"fp8": "FP8", "int8": "8-bit integers", "int4": "4-bit integers", "nvfp4": "NVFP4"}
_NUMBERS |= {"mxfp4": "MXFP4", "mxfp8": "MXFP8"}


@dataclass(frozen=True)
class Scheme:
    """What a folder declares of the activations of its layers, or of the cache.

    Attributes
    ----------
    role : str
        ``"input"``, ``"output"`` or ``"cache"``.
    numbers : str
        ``"fp8"``, ``"int8"``, ``"nvfp4"`` ...
    dynamic : bool
        Whether scales are found as the model runs; else the folder holds them.

    Examples
    --------
    >>> from qformats.interfaces import Scheme
    >>> Scheme("input", "fp8", dynamic=True).told
    'inputs of layers in FP8, with scales that are found as it runs'
    """

    role: str
    numbers: str
    dynamic: bool = True

    @property
    def told(self) -> str:
        """A clause for users."""
        found = "with scales that are found as it runs" if self.dynamic else "with scales of its own"
        return f"{_ROLES[self.role]} in {_NUMBERS.get(self.numbers, self.numbers)}, {found}"


@dataclass(frozen=True)
class Step:
    """What one number beside a module of a folder stands for: a step of its activations.

    Attributes
    ----------
    role : str
        ``"input"``, ``"key"`` or ``"value"``; the latter two of a whole attention layer.
    numbers : str
        ``"fp8"``, ``"int8"``, ``"nvfp4"``: of what the step is one.
    module : str
        Module that it belongs to: the layer, or the attention that has the cache.
    divides : bool
        Whether the reciprocal is stored.

    Examples
    --------
    >>> from qformats.interfaces import Step
    >>> Step("input", "nvfp4", "model.layers.0.mlp.up_proj", divides=True).divides
    True
    """

    role: str
    numbers: str
    module: str
    divides: bool = False


@dataclass(frozen=True)
class Place:
    """Where a folder keeps such a number.

    Attributes
    ----------
    name : str
        Of the tensor.
    divides : bool
        Whether the reciprocal is stored.
    shape : tuple of int
        Of the tensor, which holds one number.

    Examples
    --------
    >>> from qformats.interfaces import Place
    >>> Place("model.layers.0.mlp.up_proj.input_scale").shape
    (1,)
    """

    name: str
    divides: bool = False
    shape: tuple[int, ...] = (1,)


def forgotten(before: Iterable[Scheme], after: Iterable[Scheme]) -> tuple[str, ...]:
    """Sentences about what a source declares and an output does not, without the full stop.

    Examples
    --------
    >>> from qformats.interfaces.activations import Scheme, forgotten
    >>> forgotten([Scheme("cache", "fp8", dynamic=False)], [])
    ('the source quantizes keys and values in the cache in FP8, with scales of its own; the output declares nothing of
    the kind, and weights do without',)
    """
    known = set(after)
    return tuple(
        f"the source quantizes {scheme.told}; the output declares nothing of the kind, and weights do without"
        for scheme in dict.fromkeys(before)
        if scheme not in known
    )
