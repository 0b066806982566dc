"""Rows that lie in another order in GGUF."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qformats.errors import ShapeError

__all__ = ["Permute", "Regroup"]


@dataclass(frozen=True)
class Permute:
    """Reorder the rows of a q or k projection from Transformers' rotary layout to llama.cpp's.

    Transformers rotates element j of a head with element j + d/2, llama.cpp (rope type NORM) with its
    neighbour: new row ``h*d + 2*j + s`` is old row ``h*d + s*d/2 + j``, with d rows per head. Whole rows move,
    so the permutation commutes with every format that packs rows. It holds for weights and biases.

    Attributes
    ----------
    heads : int
        Heads of this projection: all of them for q, the key-value heads for k.
    """

    heads: int

    def rows(self, n_rows: int) -> npt.NDArray[np.intp]:
        """Index array for ``new = old[rows]``, shape ``(n_rows,)``.

        Raises
        ------
        ShapeError
            If `n_rows` does not split into heads of an even number of rows.
        """
        return self._split(n_rows, 2, n_rows // self.heads // 2)

    def inverse(self, n_rows: int) -> npt.NDArray[np.intp]:
        """Index array for ``old = new[inverse]``, shape ``(n_rows,)``."""
        return self._split(n_rows, n_rows // self.heads // 2, 2)

    def _split(self, n_rows: int, *inner: int) -> npt.NDArray[np.intp]:
        if n_rows <= 0 or n_rows % (2 * self.heads):
            raise ShapeError(
                "q/k projection",
                f"({n_rows}, ...)",
                f"a multiple of {2 * self.heads} rows for {self.heads} heads",
            )
        index = np.arange(n_rows, dtype=np.intp)
        return np.ascontiguousarray(index.reshape(self.heads, *inner).swapaxes(1, 2)).reshape(-1)


@dataclass(frozen=True)
class Regroup:
    """Reorder the rows of a fused projection from groups of parts to parts of groups.

    Falcon, GPT-NeoX and BLOOM keep the rows of each head (or group of heads) together, first those of q, then k and v;
    llama.cpp wants all q, then all k, then all v. As for `Permute`, whole rows move.

    Attributes
    ----------
    groups : int
        How many there are.
    parts : tuple of int
        Rows of each part in a group.
    only : tuple of int
        The parts that the GGUF tensor holds, where it does not hold all: another holds the others.
    heads : int
        Heads whose rows are then reordered as by `Permute`, which leaves no way back; 0 if they stay.
    """

    groups: int
    parts: tuple[int, ...]
    only: tuple[int, ...] = ()
    heads: int = 0

    @property
    def count(self) -> int:
        """Rows of the GGUF tensor."""
        return self.groups * sum(self.parts[number] for number in self.only or range(len(self.parts)))

    def rows(self, n_rows: int) -> npt.NDArray[np.intp]:
        """Index array for ``new = old[rows]``, shape ``(n_rows,)``.

        Raises
        ------
        ShapeError
            If there are not that many rows in the groups.
        """
        if n_rows != self.groups * sum(self.parts):
            expected = f"{self.groups} groups of {' + '.join(map(str, self.parts))} rows"
            raise ShapeError("fused projection", f"({n_rows}, ...)", expected)
        index = np.arange(n_rows, dtype=np.intp).reshape(self.groups, -1)
        found = np.split(index, np.cumsum(self.parts)[:-1], axis=1)
        if self.only:
            found = [found[number] for number in self.only]
        rows = np.concatenate([part.reshape(-1) for part in found])
        return rows[Permute(self.heads).rows(len(rows))] if self.heads else rows

    def inverse(self, n_rows: int) -> npt.NDArray[np.intp]:
        """Index array for ``old = new[inverse]``, shape ``(n_rows,)``."""
        return np.argsort(self.rows(n_rows))
