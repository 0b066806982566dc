"""Tables that fit the terminal: numbers stay whole, names lose their middle, prose wraps, columns of little use go."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions

__all__ = ["Column", "Table", "shortened"]

_GAP = 2
"""Spaces between columns."""
_NAME, _PROSE = 24, 30
"""Columns that a name and a sentence have before other columns are left out."""
_LEAST = 6
"""Columns that anything has, however narrow the terminal."""
_PAGE = 120
"""Length of the line below headings at most: without a terminal, cells may be far longer."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes
    ----------
    title : str
        Heading.
    right : bool
        Whether it holds numbers: they stand at the right, and are never shortened.
    prose : bool
        Whether it holds sentences or lists, which wrap; names are shortened in the middle instead.
    """

    title: str
    right: bool = False
    prose: bool = False


@dataclass
class Table:
    """A table in the house style, drawn for the width that there is.

    Attributes
    ----------
    columns : sequence of Column
        From left to right.
    dropped : sequence of str
        Titles of columns that may be left out, the least useful first.
    rows : list of list of Text
        Cells.
    """

    columns: Sequence[Column]
    dropped: Sequence[str] = ()
    rows: list[list[Text]] = field(default_factory=list)

    def add_row(self, *cells: str) -> None:
        """Add a row of cells in rich's markup; those that are not given are empty."""
        texts = [Text.from_markup(cell) for cell in cells]
        self.rows.append([*texts, *(Text() for _ in self.columns[len(texts) :])])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        kept, widths, gone = self._fitted(options.max_width)
        dots = "..." if options.ascii_only else "…"
        if any(self.columns[i].title for i in kept):
            titles = [Text(self.columns[i].title, "bold") for i in kept]
            yield from self._lines(console, titles, kept, widths, dots)
            yield Text(
                ("-" if options.ascii_only else "─") * min(sum(widths) + _GAP * (len(widths) - 1), _PAGE)
            )
        whole = self._alike(kept, widths, dots)
        for row in self.rows:
            yield from self._lines(console, [row[i] for i in kept], kept, widths, dots, whole)
        if gone:
            note = Text(f"not shown in {options.max_width} columns: {', '.join(gone)}", "dim")
            for line in note.wrap(console, options.max_width):
                line.rstrip()
                yield line

    def _alike(self, kept: Sequence[int], widths: Sequence[int], dots: str) -> set[int]:
        """Columns of names of which some would be the same without their middles: those wrap instead."""
        found = set()
        for i, width in zip(kept, widths, strict=True):
            names = {row[i].plain: shortened(row[i], width, dots).plain for row in self.rows}
            if len(set(names.values())) < len(names):
                found.add(i)
        return found

    def _fitted(self, width: int) -> tuple[list[int], list[int], list[str]]:
        """Indices of the columns that are shown, how wide each is, and titles of those for which there is no room."""
        natural = [
            max((text.cell_len for text in (Text(column.title), *(row[i] for row in self.rows))), default=0)
            for i, column in enumerate(self.columns)
        ]
        kept = filled = [i for i in range(len(self.columns)) if natural[i]]
        for title in ("", *self.dropped):
            kept = [i for i in kept if not title or self.columns[i].title != title]
            # What each needs, and could use.
            needed = [min(natural[i], self._comfort(i)) for i in kept]
            room = width - _GAP * max(0, len(kept) - 1)
            if sum(needed) <= room:
                break
        wanted = [natural[i] for i in kept]
        if sum(needed) > room:
            needed, wanted = [min(n, _LEAST) for n in wanted], needed
        gone = [self.columns[i].title for i in filled if i not in kept]
        return kept, _shared(needed, wanted, room), gone

    def _comfort(self, index: int) -> int:
        column = self.columns[index]
        if column.right:
            return max(len(column.title), *(row[index].cell_len for row in self.rows), 0)
        return max(len(column.title), _PROSE if column.prose else _NAME)

    def _lines(
        self,
        console: Console,
        cells: Sequence[Text],
        kept: Sequence[int],
        widths: Sequence[int],
        dots: str,
        whole: Collection[int] = (),
    ) -> Iterator[Text]:
        """One row, in as many lines as its longest cell takes; nothing fills a line up to its end."""
        wrapped = [
            self._cell(console, cell, self.columns[i], width, dots, i in whole)
            for cell, i, width in zip(cells, kept, widths, strict=True)
        ]
        for number in range(max(map(len, wrapped), default=0)):
            line = Text(no_wrap=True, overflow="ignore", end="")
            for parts, i, width in zip(wrapped, kept, widths, strict=True):
                part = parts[number] if number < len(parts) else Text()
                space = " " * (width - part.cell_len)
                if line.plain or i != kept[0]:
                    line.append(" " * _GAP)
                line.append(space if self.columns[i].right else "").append(part)
                line.append("" if self.columns[i].right else space)
            line.rstrip()
            line.end = "\n"
            yield line

    def _cell(
        self, console: Console, cell: Text, column: Column, width: int, dots: str, whole: bool
    ) -> list[Text]:
        if cell.cell_len <= width:
            return [cell]
        if column.prose or column.right or whole:
            return list(cell.wrap(console, width, overflow="fold"))
        return [shortened(cell, width, dots)]


def shortened(text: Text, width: int, dots: str = "…") -> Text:
    """Text with its middle left out: what tells names apart is mostly at their ends.

    Examples
    --------
    >>> from qformats.cli.tables import shortened
    >>> from rich.text import Text
    >>> shortened(Text("model.layers.10.mlp.down_proj.weight"), 20).plain
    'model.laye…oj.weight'
    """
    if text.cell_len <= width:
        return text
    room = max(0, width - len(dots))
    # Wide characters take two columns: cut by what is shown, not by what is counted.
    head, tail = text.copy(), text.copy()
    head.truncate(room - room // 2, overflow="crop")
    start = len(text)
    while start and tail.plain and Text(text.plain[start - 1 :]).cell_len <= room // 2:
        start -= 1
    return Text.assemble(head, (dots, text.style), text[start:]) if room else Text(dots[:width])


def _shared(needed: Sequence[int], wanted: Sequence[int], room: int) -> list[int]:
    """Widths between what is needed and what is wanted, shared evenly; less than needed if there is no room."""
    widths = list(needed)
    left = room - sum(widths)
    while left > 0:
        growing = [i for i, width in enumerate(widths) if width < wanted[i]]
        if not growing:
            break
        for i in growing[:left]:
            more = min(wanted[i] - widths[i], max(1, left // len(growing)))
            widths[i] += more
            left -= more
    while left < 0 and max(widths) > 1:
        widest = widths.index(max(widths))
        widths[widest] -= 1
        left += 1
    return widths
