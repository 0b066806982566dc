"""Beginnings of texts that were read before: a conversation's next turn begins with all turns before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qformats.chatting.cache import KeysAndValues, clipped

__all__ = ["Prefixes"]

_SHORTEST = 8
"""Tokens from which on keeping or looking for them is worth it."""
_MOST = 32
"""Texts that are compared with each new one."""


@dataclass
class _Kept:
    ids: list[int]
    held: KeysAndValues

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for pair in self.held for each in pair)


class Prefixes:
    """Keys and values of texts that have ended; the one that was needed least recently goes first.

    Parameters
    ----------
    nbytes : int
        Of all of them at most.
    """

    def __init__(self, nbytes: int) -> None:
        self._limit = nbytes
        self._kept: list[_Kept] = []

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return sum(each.nbytes for each in self._kept)

    def find(self, ids: Sequence[int]) -> tuple[int, KeysAndValues | None]:
        """How many tokens of a text are known, and their keys and values; its last token is always read again."""
        shared = [(_common(each.ids, ids[:-1]), each) for each in self._kept]
        count, best = max(shared, key=lambda pair: pair[0], default=(0, None))
        if best is None or count < _SHORTEST:
            return 0, None
        self._kept.remove(best)
        self._kept.append(best)
        return count, clipped(best.held, count)

    def keep(self, ids: Sequence[int], held: KeysAndValues) -> None:
        """Remember a text, in place of those that it begins with."""
        new = _Kept(list(ids), held)
        if len(ids) < _SHORTEST or new.nbytes > self._limit:
            return
        self._kept = [each for each in self._kept if _common(each.ids, ids) < len(each.ids)]
        self._kept.append(new)
        while self.nbytes > self._limit or len(self._kept) > _MOST:
            self._kept.pop(0)

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two texts begin with alike."""
    count = min(len(one), len(other))
    return next((n for n in range(count) if one[n] != other[n]), count)
