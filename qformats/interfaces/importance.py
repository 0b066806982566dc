"""Importance matrices: what a squared error in each column of a weight costs, and where that is known from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from qformats.errors import ConfigError, Described
from qformats.work.shown import Shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["ColumnSums", "Importance"]


@dataclass(frozen=True, eq=False, repr=False)
class ColumnSums(Shown):
    """Squares of what was multiplied with each column of a weight, summed over the tokens of a text.

    Attributes
    ----------
    squares : ndarray
        float64, ``(matrices, K)``: the sums, one row per matrix. Experts of a mixture that are stored in one tensor are
        its matrices. A file that does not count them apart has one row of all their columns.
    counts : ndarray
        float64, ``(matrices,)``: tokens that reached each matrix.

    Examples
    --------
    >>> import numpy as np
    >>> from qformats.interfaces import ColumnSums
    >>> sums = ColumnSums(np.array([[8.0, 2.0], [0.0, 0.0]]), np.array([2.0, 0.0]))
    >>> sums.means((2, 5, 2)).tolist()
    [[4.0, 1.0], [1.0, 1.0]]
    """

    squares: NDArray[np.float64]
    counts: NDArray[np.float64]

    def _shown_facts(self) -> dict[str, str]:
        matrices, columns = self.squares.shape
        return {
            "matrices": f"{matrices:,} x {columns:,} columns",
            "tokens": f"{self.counts.max():,.0f} tokens",
        }

    def means(self, shape: Sequence[int], name: str = "importance") -> NDArray[np.float32]:
        """Mean squares, for a tensor of this shape: 1 throughout a matrix that no token has reached.

        Parameters
        ----------
        shape : sequence of int
            ``(..., N, K)``.
        name : str
            Of the tensor, for messages.

        Returns
        -------
        ndarray
            float32, ``(matrices, K)``.

        Raises
        ------
        ConfigError
            If there is not one number for each column of each matrix.
        """
        import numpy as np

        matrices, columns = math.prod(shape[:-2]), int(shape[-1])
        if self.squares.size != matrices * columns:
            wanted = f"{columns:,}, one for each column"
            if matrices != 1:
                wanted = (
                    f"{matrices * columns:,}, one for each of {columns:,} columns of {matrices:,} matrices"
                )
            found = Described(f"{self.squares.size:,} numbers")
            hint = "The importance matrix belongs to another model"
            raise ConfigError(f"importance of {name}", found, wanted, hint)
        counts = self.counts[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            means = np.where(counts > 0, self.squares / counts, 1.0)
        return means.astype(np.float32).reshape(matrices, columns)

    @staticmethod
    def stacked(parts: Sequence[ColumnSums | None]) -> ColumnSums | None:
        """Sums of matrices that one tensor stacks; ``None`` where nothing is known of any of them.

        Parameters
        ----------
        parts : sequence of ColumnSums or None
            Of one matrix each; ``None`` for a matrix that no token has reached.

        Raises
        ------
        ConfigError
            If they are not about matrices of equal width.
        """
        import numpy as np

        known = [part for part in parts if part is not None]
        if not known:
            return None
        shapes = sorted({part.squares.shape for part in known})
        if len(shapes) > 1 or shapes[0][0] != 1:
            found = Described(" and ".join(str(shape) for shape in shapes))
            raise ConfigError("importance of stacked matrices", found, "one row each, of equal length")
        unknown = ColumnSums(np.zeros(shapes[0]), np.zeros(1))
        every = [unknown if part is None else part for part in parts]
        return ColumnSums(
            np.concatenate([part.squares for part in every]), np.concatenate([part.counts for part in every])
        )

    def matrix(self, number: int) -> ColumnSums:
        """One of the matrices."""
        return ColumnSums(self.squares[number : number + 1], self.counts[number : number + 1])

    def divided(self, matrices: int) -> ColumnSums:
        """The sums by matrix, of a file that does not count them apart; as they are if they do not divide.

        Parameters
        ----------
        matrices : int
            How many there are.
        """
        import numpy as np

        if len(self.counts) != 1 or matrices == 1 or self.squares.size % matrices:
            return self
        return ColumnSums(self.squares.reshape(matrices, -1), np.repeat(self.counts, matrices))

    def plus(self, other: ColumnSums, name: str = "importance") -> ColumnSums:
        """Sums over both texts.

        Raises
        ------
        ConfigError
            If the two are not about the same tensor.
        """
        first, second = self.divided(len(other.counts)), other.divided(len(self.counts))
        if first.squares.shape != second.squares.shape:
            found = Described(" x ".join(map(str, second.squares.shape)) + " numbers")
            expected = " x ".join(map(str, first.squares.shape)) + ", as in the other file"
            hint = "The importance matrices belong to different models"
            raise ConfigError(f"importance of {name}", found, expected, hint)
        return ColumnSums(first.squares + second.squares, first.counts + second.counts)


@dataclass(frozen=True, eq=False, repr=False)
class Importance(Shown):
    """Importance of the columns of a model's weights, and its provenance.

    Attributes
    ----------
    sums : mapping of str to ColumnSums
        By name of the tensor: the file's names as it was read, those of a model's tensors once they are known.
    files : tuple of str
        Files that it was read from.
    datasets : tuple of str
        Texts that it was measured on.
    chunks, chunk_size : int
        Pieces of text, and tokens of each; 0 if that is not known.
    entries : int
        Tensors in the files.

    Examples
    --------
    >>> import numpy as np
    >>> from qformats.interfaces import ColumnSums, Importance
    >>> sums = {"w": ColumnSums(np.array([[8.0, 2.0]]), np.array([2.0]))}
    >>> found = Importance(sums, datasets=("book.txt",), chunks=4, chunk_size=512)
    >>> twice = found.plus(found)
    >>> twice.chunks, twice.datasets, twice.sums["w"].squares.tolist()
    (8, ('book.txt',), [[16.0, 4.0]])
    """

    sums: Mapping[str, ColumnSums]
    files: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    chunks: int = 0
    chunk_size: int = 0
    entries: int = field(default=-1)

    def __post_init__(self) -> None:
        if self.entries < 0:
            object.__setattr__(self, "entries", len(self.sums))

    def _shown_facts(self) -> dict[str, str]:
        return {
            "entries": f"{self.entries:,} tensors",
            "chunks": f"{self.chunks:,} chunks of {self.chunk_size:,} tokens" if self.chunks else "",
            "datasets": ", ".join(self.datasets),
            "files": ", ".join(self.files),
        }

    def plus(self, other: Importance) -> Importance:
        """Both together, as if one text had followed the other.

        Raises
        ------
        ConfigError
            If they belong to different models.
        """
        names = dict.fromkeys((*self.sums, *other.sums))
        sums = {name: _both(name, self.sums.get(name), other.sums.get(name)) for name in names}
        return Importance(
            sums,
            _united(self.files, other.files),
            _united(self.datasets, other.datasets),
            self.chunks + other.chunks,
            self.chunk_size or other.chunk_size,
        )

    def under(self, sums: Mapping[str, ColumnSums]) -> Importance:
        """The same with other names."""
        return replace(self, sums=sums)

    @property
    def provenance(self) -> dict[str, Any]:
        """What it was made from, as plain data for reports."""
        return {
            "files": list(self.files),
            "datasets": list(self.datasets),
            "entries": self.entries,
            "chunks": self.chunks,
            "chunk_size": self.chunk_size,
        }

    @property
    def unreached(self) -> int:
        """Matrices that no token has reached: experts that the text never needs."""
        return sum(int((sums.counts == 0).sum()) for sums in self.sums.values())

    @property
    def fingerprint(self) -> str:
        """Checksum of all numbers, and of where they come from."""
        import xxhash

        digest = xxhash.xxh3_128()
        digest.update(repr(self.provenance).encode())
        for name in sorted(self.sums):
            sums = self.sums[name]
            digest.update(f"{name}{sums.squares.shape}".encode())
            digest.update(sums.squares.tobytes())
            digest.update(sums.counts.tobytes())
        return str(digest.hexdigest())


def _both(name: str, first: ColumnSums | None, second: ColumnSums | None) -> ColumnSums:
    if first is None or second is None:
        found = first or second
        assert found is not None
        return found
    return first.plus(second, name)


def _united(first: Iterable[str], second: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*first, *second)))
