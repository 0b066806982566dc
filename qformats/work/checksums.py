"""Checksums of files: XXH3 of pieces, so that several threads can work on one file and damage has a place."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import xxhash

__all__ = ["ALGORITHM", "PIECE", "Piece", "digest", "file_digest", "joined"]

ALGORITHM = "xxh3-128"
"""What records call the checksum: 128 bits, hexadecimal."""
PIECE = 16 << 20
"""Bytes of a piece where nothing else divides a file."""
_READ = 4 << 20
"""Bytes that are read at a time."""
_AHEAD = 16
"""Pieces that are begun and not taken yet."""


@dataclass(frozen=True)
class Piece:
    """A range of one file and the checksum of its bytes.

    Attributes
    ----------
    offset, nbytes : int
        Place in the file.
    digest : str
        XXH3 of the bytes, 128 bits, hexadecimal.
    tensor : int
        Which tensor of a record it belongs to; -1 for headers and padding.

    Examples
    --------
    >>> from qformats.work.checksums import Piece
    >>> piece = Piece(64, 128, "00112233445566778899aabbccddeeff", tensor=3)
    >>> piece.text, Piece.parse(piece.text) == piece
    ('64 128 00112233445566778899aabbccddeeff 3', True)
    """

    offset: int
    nbytes: int
    digest: str
    tensor: int = -1

    @property
    def text(self) -> str:
        """One line of a record."""
        of = f" {self.tensor}" if self.tensor >= 0 else ""
        return f"{self.offset} {self.nbytes} {self.digest}{of}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """What :attr:`text` gives.

        Raises
        ------
        ValueError
            If it is something else.
        """
        offset, nbytes, found, *of = text.split(" ")
        piece = cls(int(offset), int(nbytes), found, int(of[0]) if of else -1)
        if piece.text != text or min(piece.offset, piece.nbytes) < 0 or len(found) != 32:
            raise ValueError(f"no piece of a file: {text[:80]!r}")
        return piece


def digest(handle: int, offset: int, nbytes: int) -> str:
    """Checksum of what an open file holds now; of less where the file ends earlier.

    Examples
    --------
    >>> import os, qformats
    >>> from qformats.work.checksums import digest
    >>> handle = os.open(qformats.open("demo").path / "config.json", os.O_RDONLY)
    >>> len(digest(handle, 0, 100))
    32
    >>> os.close(handle)
    """
    found = xxhash.xxh3_128()
    while nbytes:
        data = os.pread(handle, min(nbytes, _READ), offset)
        if not data:
            break
        found.update(data)
        offset, nbytes = offset + len(data), nbytes - len(data)
    return found.hexdigest()


def file_digest(
    path: Path, advance: Callable[[int], object] | None = None, pool: Executor | None = None
) -> str:
    """Checksum of a whole file: that of the checksums of its pieces of 16 MiB, one after the other.

    Parameters
    ----------
    path : Path
        The file.
    advance : callable, optional
        Called with the bytes of each piece when it is done; with a `pool`, when it is begun.
    pool : Executor, optional
        Threads that read pieces; a few of them at a time.

    Raises
    ------
    OSError
        If it cannot be read.

    Examples
    --------
    >>> import qformats
    >>> from qformats.work.checksums import file_digest
    >>> len(file_digest(qformats.open("demo").path / "config.json"))
    32
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(handle).st_size
        return joined(
            _pieces(handle, size, advance) if pool is None else _shared(handle, size, advance, pool)
        )
    finally:
        os.close(handle)


def _pieces(handle: int, size: int, advance: Callable[[int], object] | None) -> Iterable[str]:
    for offset in range(0, size, PIECE):
        nbytes = min(PIECE, size - offset)
        yield digest(handle, offset, nbytes)
        if advance is not None:
            advance(nbytes)


def _shared(handle: int, size: int, advance: Callable[[int], object] | None, pool: Executor) -> Iterable[str]:
    """The same by several threads, none of which is left with the file when this ends."""
    begun: deque[Future[str]] = deque()
    try:
        for offset in range(0, size, PIECE):
            nbytes = min(PIECE, size - offset)
            begun.append(pool.submit(digest, handle, offset, nbytes))
            if len(begun) > _AHEAD:
                yield begun.popleft().result()
            if advance is not None:
                advance(nbytes)
        while begun:
            yield begun.popleft().result()
    finally:
        wait(begun)


def joined(digests: Iterable[str]) -> str:
    """Checksum of the checksums of pieces.

    Examples
    --------
    >>> from qformats.work.checksums import joined
    >>> joined([]) == joined(["00" * 16])
    False
    """
    found = xxhash.xxh3_128()
    for each in digests:
        found.update(bytes.fromhex(each))
    return found.hexdigest()
