"""Which tensors a model has."""

from __future__ import annotations

from dataclasses import dataclass

from qformats_gguf.architectures.limits import Config
from qformats_gguf.architectures.pieces import PieceRule

__all__ = ["Fused", "If", "TensorRule"]


@dataclass(frozen=True)
class If:
    """A tensor that exists only if ``config[key] == value``; its presence in turn tells that value.

    A key that begins with an underscore is in no ``config.json``: it tells two forms of files apart.
    """

    key: str
    value: bool | int = True

    def holds(self, config: Config) -> bool:
        """Whether a model of this configuration has the tensor."""
        found = config.get(self.key)
        return bool(found) is self.value if isinstance(self.value, bool) else found == self.value


@dataclass(frozen=True)
class TensorRule:
    """A module and the tensors it has: ``.weight``, and perhaps ``.bias``.

    Attributes
    ----------
    canonical, gguf : str
        Module names; ``{i}`` stands for the block.
    weight, bias : bool or If
        Always present, never present, or present under a condition.
    permute : str, optional
        Configuration key with the number of heads whose rows are reordered.
    groups : (str, tuple of str), optional
        Number of groups of rows, and rows of each part of one, as symbolic dimensions; see `Regroup`.
    only : tuple of int
        Those of these parts that the GGUF tensor holds, where several share them.
    force_f32 : bool
        Keep the weight in float32. Biases always are.
    alias_of : str, optional
        Module whose weight this one shares if its condition does not hold; such a copy is dropped.
    offset : float
        Added to the values on the way to GGUF: norms that multiply by ``1 + weight`` are stored so.
    experts : str, optional
        Configuration key with the number of experts, whose matrices GGUF stacks in one tensor. ``{e}`` stands for the
        expert in `canonical`.
    shape : tuple of str
        Symbolic dimensions of the weight in configuration keys, see :func:`qformats.interfaces.evaluate`; a bias
        has the first one.
    parameter : str, optional
        Ending of the name in GGUF, where `canonical` is the name of a parameter by itself and not of a module.
    layers : str
        ``dense`` or ``sparse``, where only layers without or with experts have this module; or a kind of layers, where
        they have several.
    piece : PieceRule, optional
        Which part of the tensor this is, of which GGUF makes several.
    squeezed, negated_exp : bool
        See `TensorMapping`; of the weight.
    """

    canonical: str
    gguf: str
    shape: tuple[str, ...]
    weight: bool | If = True
    bias: bool | If = False
    permute: str | None = None
    groups: tuple[str, tuple[str, ...]] | None = None
    only: tuple[int, ...] = ()
    force_f32: bool = False
    alias_of: str | None = None
    offset: float = 0.0
    experts: str | None = None
    parameter: str | None = None
    layers: str = ""
    piece: PieceRule | None = None
    squeezed: bool = False
    negated_exp: bool = False

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Endings of the names in GGUF."""
        return (".weight", ".bias") if self.parameter is None else (self.parameter,)

    @property
    def per_block(self) -> bool:
        """Whether every block has this module."""
        return "{i}" in self.gguf

    def presence(self, suffix: str) -> bool | If:
        """Rule for the tensor ``.weight`` or ``.bias``."""
        return self.bias if suffix == ".bias" and self.parameter is None else self.weight


@dataclass(frozen=True)
class Fused:
    """Modules that a GGUF file may store as one, their rows below each other; of stacks, those of each matrix.

    Attributes
    ----------
    gguf : str
        Name of the one module; ``{i}`` stands for the block.
    parts : tuple of str
        GGUF names of the modules in it, in the order of their rows.
    """

    gguf: str
    parts: tuple[str, ...]
