"""Cutting an export into parts for several machines, so that one process at a time writes each output file."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qformats.exporting.fill import Output, Places, Slice, source_bytes

__all__ = ["MOST_BYTES", "Part", "owned_together", "parts_of"]

MOST_BYTES = 256 << 20
"""Bytes of the source that a part is made from: so much is lost with a machine, and seconds of work between reports."""
_LEAST_BYTES = 4 << 20
"""A part of a small model; below, starting it takes longer than doing it."""
_TURNS = 8
"""Parts that each file of a small model is cut into."""


@dataclass(frozen=True, eq=False)
class Part:
    """Slices that one task writes, all of them into files that nobody else writes meanwhile.

    Attributes
    ----------
    output : Output
        The output that they belong to.
    files : tuple of int
        Files of its layout.
    slices : tuple of Slice
        In the order of the source.
    """

    output: Output
    files: tuple[int, ...]
    slices: tuple[Slice, ...]


def owned_together(touched: Iterable[Sequence[int]], count: int) -> list[tuple[int, ...]]:
    """Files that must have one owner: those that hold parts of one slice, and whatever these share with others.

    Parameters
    ----------
    touched : iterable of sequence of int
        Files of each slice.
    count : int
        How many files there are.

    Returns
    -------
    list of tuple of int
        Every file once.

    Examples
    --------
    >>> from qformats.exporting.engines.parts import owned_together
    >>> owned_together([(0,), (1, 3), (3,), (2,)], 4)
    [(0,), (1, 3), (2,)]
    """
    leader = list(range(count))

    def found(file: int) -> int:
        while leader[file] != file:
            leader[file] = leader[leader[file]]
            file = leader[file]
        return file

    for files in touched:
        for file in files[1:]:
            one, other = sorted((found(files[0]), found(file)))
            leader[other] = one
    groups: dict[int, list[int]] = {}
    for file in range(count):
        groups.setdefault(found(file), []).append(file)
    return [tuple(files) for files in groups.values()]


def parts_of(pending: Sequence[tuple[Output, Slice]]) -> list[deque[Part]]:
    """Queues of parts; those of one queue write the same files and so are done one after the other.

    Parameters
    ----------
    pending : sequence of (Output, Slice)
        What is not written yet.
    """
    outputs: dict[int, tuple[Output, list[Slice]]] = {}
    for output, piece in pending:
        outputs.setdefault(id(output), (output, []))[1].append(piece)
    queues: list[deque[Part]] = []
    for output, pieces in outputs.values():
        places = Places(output.plan)
        touched = [tuple(dict.fromkeys(place[0] for place in places.places(piece))) for piece in pieces]
        groups = owned_together(touched, len(output.plan.layout.files))
        number = {file: i for i, files in enumerate(groups) for file in files}
        inside: dict[int, list[Slice]] = {}
        for piece, files in zip(pieces, touched, strict=True):
            # A slice without bytes goes wherever there is work.
            inside.setdefault(number[files[0]] if files else 0, []).append(piece)
        queues += [_cut(output, groups[i], slices) for i, slices in inside.items()]
    # The longest first: the end waits for whoever has most left.
    return sorted(queues, key=_bytes_of, reverse=True)


def _cut(output: Output, files: tuple[int, ...], slices: Sequence[Slice]) -> deque[Part]:
    sizes = [source_bytes(output.plan, piece) for piece in slices]
    most = min(MOST_BYTES, max(_LEAST_BYTES, sum(sizes) // _TURNS))
    parts: deque[Part] = deque()
    current: list[Slice] = []
    held = 0
    for piece, nbytes in zip(slices, sizes, strict=True):
        if current and held + nbytes > most:
            parts.append(Part(output, files, tuple(current)))
            current, held = [], 0
        current.append(piece)
        held += nbytes
    parts.append(Part(output, files, tuple(current)))
    return parts


def _bytes_of(queue: deque[Part]) -> int:
    return sum(source_bytes(part.output.plan, piece) for part in queue for piece in part.slices)
