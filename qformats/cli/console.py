"""Output of all commands: tables on standard output, progress on standard error."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from qformats.cli.tables import Table

__all__ = ["Bar", "Talk", "console", "harmless", "jsonable", "note", "plain", "size", "table", "talk"]

_UNLIMITED = 100_000
"""Columns if standard output is not a terminal: searching it needs whole lines."""


@dataclass
class Talk:
    """How much the user wants to be told."""

    quiet: bool = False
    verbose: bool = False
    debugging: bool = False


talk = Talk()
"""Of this run of the program."""


def note(text: str) -> None:
    """Tell the user something on standard error, unless only results and errors are wanted."""
    if not talk.quiet:
        print(f"qformats: {harmless(text)}", file=sys.stderr)


def console() -> Console:
    """Console on standard output; plain if it is not a terminal, colourless with NO_COLOR."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else _UNLIMITED)


def jsonable(data: Any) -> Any:
    """The same data if JSON can express it, and text otherwise (NaN, paths)."""
    if isinstance(data, Mapping):
        return {str(key): jsonable(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [jsonable(value) for value in data]
    if hasattr(data, "item"):
        data = data.item()
    if (
        data is None
        or isinstance(data, bool | int | str)
        or (isinstance(data, float) and math.isfinite(data))
    ):
        return data
    return str(data)


def harmless(text: object) -> str:
    """One line with nothing in it that a terminal would act on: names and paths of models are in most messages."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def plain(text: object) -> str:
    """Text of a model (a name, a path, metadata) with nothing in it that a terminal or rich would act on."""
    from rich.markup import escape

    return escape(harmless(text))


def table(
    *columns: str, right: Sequence[str] = (), prose: Sequence[str] = (), dropped: Sequence[str] = ()
) -> Table:
    """Empty table in the house style, which fits itself to the terminal.

    Parameters
    ----------
    *columns : str
        Titles from left to right; no line of titles if all are empty.
    right : sequence of str
        Columns of numbers, which are never shortened.
    prose : sequence of str
        Columns of sentences, which wrap, as does a last one without a title. Any other column holds names, which
        are shortened in the middle.
    dropped : sequence of str
        Columns that a narrow terminal leaves out, the least useful first.
    """
    from qformats.cli.tables import Column, Table

    last = len(columns) - 1
    return Table(
        [
            Column(title, title in right, title in prose or (i == last and not title))
            for i, title in enumerate(columns)
        ],
        dropped,
    )


def size(nbytes: float) -> str:
    """Bytes for people: ``98.4 MB``."""
    # Help needs none of it, and nothing else of ours.
    from qformats.work import shown

    return shown.size(nbytes)


class Bar:
    """Progress: what is being done, with bytes and time left where they are known.

    Silent if standard error is not a terminal, or the user wants quiet; with ``--verbose`` each step is a line.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.text import Text

        def measured(kind: Any) -> Any:
            """A column that is empty while nothing can be measured."""

            def render(self: Any, task: Any) -> Any:
                return kind.render(self, task) if task.total else Text("")

            return type(kind.__name__, (kind,), {"render": render})()

        self._console = Console(stderr=True, highlight=False)
        self._task: TaskID | None = None
        self._began = time.perf_counter()
        self._said = ""
        self._watching = contextlib.ExitStack()
        columns = (BarColumn, DownloadColumn, TransferSpeedColumn, TimeRemainingColumn)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            *map(measured, columns),
            console=self._console,
            transient=True,
            disable=not sys.stderr.isatty() or self._console.is_dumb_terminal or talk.quiet,
        )

    def start(self, task: str, total: int = 0) -> None:
        """Begin a task of `total` bytes, in place of the one before; 0 if nothing is known of its length."""
        task = harmless(task)
        if self._task is not None:
            # Its end is seen before it goes.
            self._progress.refresh()
            self._progress.remove_task(self._task)
        self._said = task
        self._task = self._progress.add_task(task, total=total or None)
        self._progress.refresh()
        if talk.verbose:
            about = f" ({size(total)})" if total else ""
            self.notice(f"{time.perf_counter() - self._began:5.1f} s: {task}{about}")

    def advance(self, nbytes: int) -> None:
        """Move the bar."""
        if self._task is not None:
            self._progress.advance(self._task, nbytes)

    def _compiling(self, running: bool) -> None:
        """Say why nothing advances."""
        if self._task is not None:
            told = f"{self._said}: compiling kernels, only this once" if running else self._said
            self._progress.update(self._task, description=told)

    def notice(self, text: str) -> None:
        """Print a line above the bar."""
        if not talk.quiet:
            self._console.print(f"qformats: {harmless(text)}", markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def aside(self, text: str) -> Iterator[None]:
        """Leave the screen to something that shows its own progress, such as a download; `text` announces it."""
        self.stop()
        if not self._progress.disable:
            self.notice(text)
        try:
            yield
        finally:
            self._progress.start()

    def stop(self) -> None:
        """Take it off the screen."""
        self._progress.stop()

    def __enter__(self) -> Bar:
        from qformats.work import compiling

        self._watching.enter_context(compiling.watched(self._compiling))
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._watching.close()
        self.stop()
