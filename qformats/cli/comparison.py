"""Numbers of a comparison for the terminal, and the table of its tasks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from qformats.comparing.report import CompareReport, Estimate, TaskChange, TaskResult, TaskUsed

__all__ = ["NONE", "counted", "estimate", "print_tasks"]

_HUGE = 1e6
"""Perplexities from it on are written with an exponent."""
NONE = "-"
"""Shown instead of a number that does not exist."""


def estimate(found: Estimate, how: str) -> str:
    """A number and its standard error, as far as they are finite.

    >>> from qformats.comparing.report import Estimate
    >>> estimate(Estimate(41.3, 2.412), ".2f")
    '41.30 ±2.41'
    """
    if not math.isfinite(found.value):
        return NONE
    how = how if abs(found.value) < _HUGE else ".2e"
    return format(found.value, how) + (f" ±{format(found.error, how)}" if math.isfinite(found.error) else "")


def counted(number: int, what: str) -> str:
    """A number of things.

    >>> counted(1, "window"), counted(2000, "token")
    ('1 window', '2,000 tokens')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def print_tasks(out: Console, report: CompareReport) -> None:
    """Tasks side by side: a column for each, a line for each model; and what is proved of each model."""
    from qformats.cli.console import plain, table

    everyone = [model for model in (report.base, *report.models) if model.tasks]
    if not everyone:
        return
    names = [task.name for task in report.tasks]
    rows = table("tasks", *names, right=names, dropped=names[:0:-1])
    for model in everyone:
        cells = [_value(model.tasks.get(task.name), task) for task in report.tasks]
        rows.add_row(plain(model.name), *cells)
    out.print()
    out.print(rows)
    compared = [model for model in report.models if any(result.against for result in model.tasks.values())]
    if compared:
        rows = table("over base", "task", "change", "proved", right=["change"])
        for model in compared:
            for task in report.tasks:
                found = model.tasks.get(task.name)
                if found is not None and found.against is not None:
                    change, finding = _change(found.against), found.against.finding.value
                    rows.add_row(plain(model.name), plain(task.name), change, finding)
        out.print()
        out.print(rows)
    for task in report.tasks:
        out.print(plain(_said(report, task)))
    ways = {result.reading: result.how for model in everyone for result in model.tasks.values()}
    for reading, how in ways.items():
        out.print(plain(f"{reading}: {how}"))


def _value(found: TaskResult | None, task: TaskUsed) -> str:
    if found is None:
        return NONE
    if task.measure == "perplexity":
        return ("over " if found.capped else "") + estimate(found.value, ".3f")
    return _percent(found.value, "")


def _percent(found: Estimate, sign: str) -> str:
    error = f" ±{found.error * 100:.2f}" if math.isfinite(found.error) else ""
    return f"{found.value * 100:{sign}.2f}{error} %"


def _change(found: TaskChange) -> str:
    """A difference of accuracies, or the ratio of perplexities."""
    if found.log_ratio is None:
        return _percent(found.difference, "+")
    ratio = math.exp(min(found.log_ratio.value, math.log(_HUGE)))
    error = found.log_ratio.error * ratio
    return f"{ratio:.4f}" + (f" ±{error:.4f}" if math.isfinite(error) else "")


def _said(report: CompareReport, task: TaskUsed) -> str:
    """What a task measured, in sentences."""
    done = [model.tasks[task.name] for model in (report.base, *report.models) if task.name in model.tasks]
    if not done:
        return f"{task.name}: no model could be run on {task.source}."
    first = done[0]
    part = "the beginning of " if task.shortened else ""
    if task.measure == "perplexity":
        what = (
            f"perplexity per word: {counted(task.words, 'word')}, {counted(first.tokens, 'token')} scored in "
            f"{counted(first.windows, 'window')} of {task.window} (step {task.step})"
        )
    else:
        what = f"last words found: {counted(first.windows, 'passage')}"
    readings = ", ".join(dict.fromkeys(result.reading for result in done))
    return f"{task.name}: {what}, of {part}{task.source}; read {readings}."
