"""Published tests: every model's result, what it is against the base's, and how each was measured."""

from __future__ import annotations

import math

from qformats.comparing.page.markup import Html, el, join
from qformats.comparing.page.numbers import NONE, PERCENT, count, estimate
from qformats.comparing.page.tables import Column, Entry, table
from qformats.comparing.report import CompareReport, Estimate, TaskChange, TaskResult, TaskUsed

__all__ = ["tasks"]


def tasks(report: CompareReport) -> Html | None:
    """A table of results, a table of changes, and a sentence for each task; ``None`` if there were no tasks."""
    everyone = [m for m in (report.base, *report.models) if m.tasks]
    if not everyone:
        return None
    columns = [Column("Model", "", numeric=False)]
    columns += [Column(task.title, _meaning(task)) for task in report.tasks]
    rows = [
        [Entry(m.name), *(_value(m.tasks.get(task.name), task) for task in report.tasks)] for m in everyone
    ]
    readings = {r.reading for m in everyone for r in m.tasks.values()}
    if len(readings) > 1:
        columns.append(
            Column("Read", "How the model reads a text; only equal ways are compared.", numeric=False)
        )
        for m, row in zip(everyone, rows, strict=True):
            row.append(Entry(", ".join(dict.fromkeys(r.reading for r in m.tasks.values()))))
    used = [el("li", _used(task, report)) for task in report.tasks]
    ways = {result.reading: result.how for m in everyone for result in m.tasks.values()}
    used += [el("li", f"{reading}: {how}.") for reading, how in ways.items()]
    return join(
        table("Results of each model", columns, rows, "tasks-table"),
        _changes(report),
        el("ul", *used, class_="small"),
    )


def _meaning(task: TaskUsed) -> str:
    if task.measure == "perplexity":
        return "Perplexity per word, with its standard error; lower is better."
    return "Passages whose last word the model finds, with the standard error; higher is better."


def _value(found: TaskResult | None, task: TaskUsed) -> Entry:
    if found is None:
        return Entry(NONE)
    if task.measure == "perplexity":
        shown = estimate(found.value)
        return Entry(f"over {shown}" if found.capped else shown, found.nats_per_word)
    return Entry(estimate(found.value, 100, PERCENT), found.value.value)


def _changes(report: CompareReport) -> Html | None:
    compared = [m for m in report.models if any(r.against for r in m.tasks.values())]
    if not compared:
        return None
    columns = [Column("Model", "", numeric=False)]
    for task in report.tasks:
        what = "ratio of perplexities" if task.measure == "perplexity" else "difference in percentage points"
        columns.append(Column(task.title, f"Against the base: {what}, with its standard error."))
        columns.append(Column("Proved", "What the text proves, with 95 % confidence.", numeric=False))
    rows = []
    for m in compared:
        row = [Entry(m.name)]
        for task in report.tasks:
            against = m.tasks[task.name].against if task.name in m.tasks else None
            row += [Entry(NONE), Entry(NONE)] if against is None else _against(against)
        rows.append(row)
    return table("Against the base", columns, rows, "task-changes")


def _against(change: TaskChange) -> list[Entry]:
    ratio = change.log_ratio
    if ratio is None:
        shown = estimate(change.difference, 100, PERCENT, sign=True)
        return [Entry(shown, change.difference.value), Entry(change.finding.value)]
    value = math.exp(min(ratio.value, 50.0))
    return [Entry(estimate(Estimate(value, value * ratio.error)), ratio.value), Entry(change.finding.value)]


def _used(task: TaskUsed, report: CompareReport) -> str:
    done = [m.tasks[task.name] for m in (report.base, *report.models) if task.name in m.tasks]
    part = "the beginning of " if task.shortened else ""
    if not done:
        return f"{task.title}: no model could be run on {task.source}."
    windows, readings = done[0].windows, ", ".join(dict.fromkeys(r.reading for r in done))
    if task.measure != "perplexity":
        return f"{task.title}: {count(windows, 'passage')} of {part}{task.source}, read {readings}."
    return (
        f"{task.title}: {count(task.words, 'word')}, {count(done[0].tokens, 'token')} scored in "
        f"{count(windows, 'window')} of {task.window} tokens, each {task.step} further, of {part}{task.source}, "
        f"read {readings}."
    )
