"""Scales that are quantized themselves: each a product of two stored numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qformats.errors import ConfigError, Described, ShapeError
from qformats.work.shown import Shown, dims

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NestedScales"]


@dataclass(frozen=True, eq=False, repr=False)
class NestedScales(Shown):
    """One number per block as ``inner * outer`` or ``inner / outer``; neighbouring blocks of a row share `outer`.

    For whoever chooses them: it says, beside what they are, what they could be. How a tensor's scales are stored is
    told by :class:`~qformats.numbers.ScaleLevels`.

    Attributes
    ----------
    outer : Tensor
        float32, ``(N, groups)``: values of the stored dtype, weight units.
    inner : Tensor
        float32, ``(N, blocks of a row)``: each one of `steps`; dimensionless.
    steps : Tensor
        float32, ``(levels,)``, ascending: what an inner number can be.
    dtype : str
        Of the stored outer numbers: ``"f32"``, ``"f16"`` or ``"bf16"``.
    divides : bool
        Whether the outer number divides the inner one, rather than multiplying it.

    Raises
    ------
    ShapeError
        If the blocks are not a whole number for each outer one.
    ConfigError
        If the dtype is another one.

    Examples
    --------
    >>> import torch
    >>> from qformats.numbers import NestedScales
    >>> steps = torch.arange(64).float()
    >>> NestedScales(torch.tensor([[0.5, 2.0]]), torch.tensor([[1.0, 3.0, 0.0, 63.0]]), steps).values().tolist()
    [[0.5, 1.5, 0.0, 126.0]]
    """

    outer: Tensor
    inner: Tensor
    steps: Tensor
    dtype: str = "f16"
    divides: bool = False

    def __post_init__(self) -> None:
        shape, groups = tuple(self.inner.shape), tuple(self.outer.shape)
        if len(shape) != 2 or len(groups) != 2 or shape[0] != groups[0] or shape[1] % max(1, groups[1]):
            raise ShapeError("outer", groups, f"as many rows as {shape}, and a divisor of its columns")
        if self.dtype not in ("f32", "f16", "bf16"):
            raise ConfigError("dtype", self.dtype, "f32, f16 or bf16")
        if self.steps.ndim != 1 or not self.steps.numel():
            found = Described(f"a tensor of shape {tuple(self.steps.shape)}")
            raise ConfigError("steps", found, "one dimension, ascending")

    def _shown_facts(self) -> dict[str, str]:
        return {
            "blocks": dims(self.inner.shape),
            "outer": f"{self.dtype} {dims(self.outer.shape)}",
            "steps": f"{self.steps.numel()} steps",
        }

    @property
    def group(self) -> int:
        """Blocks that share an outer number."""
        return self.inner.shape[1] // max(1, self.outer.shape[1])

    def values(self) -> Tensor:
        """The products or quotients, float32 ``(N, blocks of a row)``."""
        rows, groups = self.outer.shape
        split, outer = self.inner.view(rows, groups, self.group), self.outer.unsqueeze(-1)
        return (split / outer if self.divides else split * outer).view(self.inner.shape)
