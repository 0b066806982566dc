"""Parts of a tensor that are tensors of their own in GGUF."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Piece", "PieceRule"]


@dataclass(frozen=True)
class Piece:
    """Part of a tensor that GGUF keeps as a tensor of its own.

    Attributes
    ----------
    axis : int
        Dimension of the tensor, after grouping, of which it is a part.
    start, stop : int
        Which part.
    groups : int
        Into how many groups the first dimension is divided before, as a new first one; 0 if it is not.
    swapped : bool
        Whether GGUF has the last two dimensions the other way round.
    """

    axis: int
    start: int
    stop: int
    groups: int = 0
    swapped: bool = False

    @property
    def whole_rows(self) -> bool:
        """Whether it is some rows of a matrix, as they are."""
        return self.axis == 0 and not self.groups and not self.swapped

    def grouped(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the whole tensor after grouping."""
        return (self.groups, shape[0] // self.groups, *shape[1:]) if self.groups else shape

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the part in GGUF, by that of the whole tensor on disk."""
        dims = list(self.grouped(whole))
        dims[self.axis] = self.stop - self.start
        return (*dims[:-2], dims[-1], dims[-2]) if self.swapped else tuple(dims)


@dataclass(frozen=True)
class PieceRule:
    """A :class:`Piece` whose numbers are expressions in keys of the configuration; without `groups` there are none."""

    axis: int
    start: str
    stop: str
    groups: str = ""
    swapped: bool = False

    @property
    def expressions(self) -> tuple[str, ...]:
        """All that has to be evaluated."""
        return tuple(filter(None, (self.start, self.stop, self.groups)))
