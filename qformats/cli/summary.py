"""What an export prints: its plan, or its result."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from qformats.exporting import ExportReport
    from qformats.exporting.account import LeftOut

__all__ = ["print_details", "print_left_out", "print_plan", "print_report", "print_summary"]

_SHOWN_REASONS = 3
"""Reasons for rounding that a summary lists."""
_SHOWN_LEFT_OUT = 6
"""Names, or patterns of names, of tensors left out for one reason that a summary lists."""


def print_report(report: ExportReport, json: str | None, *, planned: bool) -> None:
    """Print what an export has done, or would do: as JSON where that is asked for, or only its name if quiet."""
    from qformats.cli.console import harmless, talk
    from qformats.cli.reporting import as_json

    if as_json(report.to_dict(), json):
        return
    if talk.quiet:
        print(harmless(report.target))
    elif planned:
        print_plan(report)
    else:
        print_summary(report)


def print_plan(report: ExportReport) -> None:
    """Print every tensor and file that an export would write."""
    from qformats.cli.console import console, plain, size, table

    out = console()
    # Whether values change matters only if the source is quantized; plain numbers are always rounded.
    quantized = any(tensor.action in ("transcoded", "requantized") for tensor in report.tensors)
    exact = ["unchanged"] if quantized else []
    rows = table(
        *("tensor", "shape", "from", "to", "bytes", *exact),
        right=("bytes", "shape"),
        dropped=("shape", "from", "bytes"),
    )
    for tensor in report.tensors:
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        before, after = _variant(tensor.source_format), _variant(tensor.format)
        told = [tensor.exact] if quantized else []
        rows.add_row(plain(tensor.name), shape, before, after, f"{tensor.nbytes:,}", *told)
    out.print(rows)
    out.print()
    actions = Counter(tensor.action for tensor in report.tensors)
    done = ", ".join(f"{count} {action}" for action, count in actions.most_common())
    out.print(f"{len(report.tensors)} tensors: {done}")
    _print_notes(out, report, every=True)
    out.print()
    files = table("file", "bytes", right=("bytes",))
    for name, nbytes in report.files:
        files.add_row(plain(name), f"{nbytes:,}")
    out.print(files)
    out.print(
        f"\nNothing was written. {plain(report.target)} would take {report.file_nbytes:,} bytes "
        f"({size(report.file_nbytes)}), {report.bits_per_weight:.2f} bits per weight."
    )


def print_summary(report: ExportReport) -> None:
    """Print what an export has written, what it cost, and how to run it."""
    from qformats.cli.console import console, plain, size, table

    out = console()
    types = ", ".join(f"{count} {_variant(name)}" for name, count in report.types.items())
    before = report.source_nbytes * 8 / max(1, report.parameters)
    rows = table("", "")
    rows.add_row("tensors", f"{len(report.tensors)}: {types}" if types else "none: a tokenizer only")
    if types:
        rows.add_row("weights", f"{report.parameters:,} ({plain(report.architecture)})")
        rows.add_row("bytes in", f"{report.source_nbytes:,} ({size(report.source_nbytes)})")
    files = f" in {len(report.files)} files" if len(report.files) > 1 else ""
    rows.add_row("bytes out", f"{report.file_nbytes:,} ({size(report.file_nbytes)}){files}")
    if types:
        rows.add_row("bits per weight", f"{before:.2f} -> {report.bits_per_weight:.2f}")
    rows.add_row("time", f"{report.seconds:.1f} s")
    out.print(f"[bold]{plain(report.target)}[/bold]  {report.format}, {plain(_chosen_by(report))}")
    out.print(rows)
    _print_notes(out, report, every=False)
    _print_rounded(out, report)
    _print_use(out, report)


def print_details(report: ExportReport, name: str, *, planned: bool) -> None:
    """Print what is special about one of several outputs, and how to run it."""
    from qformats.cli.console import console, plain

    out = console()
    out.print(f"[bold]{plain(name)}[/bold]  {report.format}, {plain(_chosen_by(report))}")
    _print_notes(out, report, every=False)
    if not planned:
        _print_rounded(out, report)
        _print_use(out, report)


def _print_rounded(out: Console, report: ExportReport) -> None:
    """Which plain numbers took the place of more exact ones."""
    rounded = Counter(
        (t.action, _variant(t.source_format), _variant(t.format)) for t in report.tensors if t.rounded
    )
    for (action, source, after), count in rounded.items():
        how = f"decoded from {source} and rounded" if action == "dequantized" else f"cast from {source}"
        out.print(f"{_tensors(count)} {'was' if count == 1 else 'were'} {how} to {after}")


def _print_use(out: Console, report: ExportReport) -> None:
    """How to run an output."""
    from qformats.cli.console import plain
    from qformats.exporting.report import needs_us

    if report.run_with:
        # No wrapping: a command is copied as a whole.
        out.print(f"Run it:  [bold]{plain(report.run_with)}[/bold]", soft_wrap=True)
    elif needs_us(Path(report.target)):
        out.print(
            "Load it with qformats.from_pretrained, or with Transformers after: "
            "import qformats; qformats.register_with_transformers()",
            soft_wrap=True,
        )


def _chosen_by(report: ExportReport) -> str:
    """Which quantizer has chosen codes, and on what text."""
    if not any(tensor.action in ("quantized", "requantized") for tensor in report.tensors):
        return "no weight was quantized"
    on = f", calibrated on {report.calibration}" if report.calibration else ""
    return f"quantizer {report.quantizer}{on}"


def _print_notes(out: Console, report: ExportReport, every: bool) -> None:
    """Why tensors got a type other than the requested one; the usual reasons only with `every`."""
    from qformats.cli.console import plain

    noted: dict[tuple[str, str], list[str]] = {}
    for tensor in report.tensors:
        if tensor.note and (every or not tensor.kept):
            noted.setdefault((_variant(tensor.format), tensor.note), []).append(tensor.name)
    for (kind, note), names in noted.items():
        shown = names[0] if len(names) == 1 else f"{len(names)} tensors ({names[0]}, ...)"
        out.print(f"{plain(shown)}: {kind}, {plain(note)}")
    print_left_out(out, report.left_out, every)
    for sentence in report.notes:
        out.print(plain(sentence))
    _print_importance(out, report)
    _print_exactness(out, report, every)


def _print_importance(out: Console, report: ExportReport) -> None:
    """By what errors were weighed, and where they were not."""
    from qformats.cli.console import plain
    from qformats.cli.folded import folded

    told = report.importance
    if told is None:
        return
    size = f" of {told['chunk_size']:,} tokens" if told["chunk_size"] else ""
    chunks = f", {told['chunks']:,} chunks{size}" if told["chunks"] else ""
    text = f" from {', '.join(told['datasets'])}" if told["datasets"] else ""
    files = ", ".join(told["files"])
    out.print(plain(f"errors are weighed by {files}: {told['entries']:,} entries{chunks}{text}"))
    if report.calibration:
        out.print("but not those of layers that were calibrated, whose own inputs were measured")
    if report.unweighed:
        names = ", ".join(folded(report.unweighed)[:_SHOWN_LEFT_OUT])
        out.print(plain(f"no importance for {_tensors(len(report.unweighed))}: {names}"))


def print_left_out(out: Console, tensors: Iterable[LeftOut], every: bool) -> None:
    """Print which tensors of the source an output does not hold, and why; all of them only with `every`."""
    from qformats.cli.console import plain
    from qformats.cli.folded import folded

    reasons: dict[str, list[str]] = {}
    for tensor in tensors:
        reasons.setdefault(tensor.reason, []).append(tensor.name)
    for reason, names in reasons.items():
        patterns = folded(names)
        shown = patterns if every else patterns[:_SHOWN_LEFT_OUT]
        rest = len(patterns) - len(shown)
        more = f" and {rest} more patterns of names (all of them are in the --json report)" if rest else ""
        out.print(f"left out, {plain(reason)}: {plain(', '.join(shown))}{more}")


def _print_exactness(out: Console, report: ExportReport, every: bool) -> None:
    """Which quantized tensors keep every value, and what the others lose."""
    from qformats.cli.console import plain
    from qformats.errors import alike

    moved = [t for t in report.tensors if t.action in ("transcoded", "requantized")]
    kept = [t for t in moved if t.exact in ("always", "yes")]
    if kept:
        out.print(f"{_tensors(len(kept), 'quantized ')} {'keep' if every else 'kept'} every value")
    unknown = [t for t in moved if t.exact == "needs the data"]
    if unknown:
        out.print(
            f"{len(unknown)} quantized tensors: only the data tells whether they keep every value (--check-exact)"
        )
    lost = {t.name: t for t in moved if t.exact in ("never", "no")}
    groups = alike({name: t.reason for name, t in lost.items()})
    for names in groups[: None if every else _SHOWN_REASONS]:
        shown = names[0] if len(names) == 1 else f"{len(names)} tensors ({names[0]}, ...)"
        errors = [error for name in names if (error := lost[name].relative_error) is not None]
        cost = f"; relative error {_span(errors)}" if errors else ""
        since = "because" if len(names) == 1 else "the first because"
        out.print(f"{plain(shown)}: rounded again, {since} {plain(lost[names[0]].reason)}{cost}")
    if len(groups) > _SHOWN_REASONS and not every:
        out.print(f"... and for {len(groups) - _SHOWN_REASONS} other reasons (qformats.json lists them all)")
    if lost:
        out.print("An unquantized source gives better results for tensors that are rounded again")


def _tensors(count: int, kind: str = "") -> str:
    return f"{count} {kind}tensor{'' if count == 1 else 's'}"


def _span(errors: list[float]) -> str:
    from qformats.numbers.error import percent

    low, high = percent(min(errors)), percent(max(errors))
    return low if low == high else f"{low} to {high}"


def _variant(format: str) -> str:
    return format.partition(":")[2]
