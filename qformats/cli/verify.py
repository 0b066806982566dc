"""``qformats verify``: whether a model on disk is whole, and what it derives from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from qformats.cli.check import EXIT_FAILED
from qformats.cli.commands import Json, LoaderOptions, Workers, pairs

if TYPE_CHECKING:
    from qformats.verifying import VerifyReport

__all__ = ["verify"]

_SHOWN = 20
"""Findings that the terminal gets; a report in JSON has all."""


def verify(
    model: Annotated[str, typer.Argument(help="File or folder, a hub id (organisation/name), or demo.")],
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The source that it was exported from: prove by the recorded recipe that it derives from it.",
        ),
    ] = None,
    option: LoaderOptions = None,
    workers: Workers = None,
    json: Json = None,
) -> None:
    """Look at every byte of a model: files, checksums, tensors, vocabulary. Exit code 1 if something is wrong.

    qformats verify my-model.gguf --against ./my-model

    Files are compared with the record that an export leaves beside them. Without a record, what can be told from
    the model itself is looked at: its structure, NaN and infinite values, codes off the grid, missing and
    unexpected tensors, tokens without a row.
    """
    import qformats
    from qformats.cli.console import Bar
    from qformats.cli.reporting import as_json

    with Bar() as bar:
        bar.start(f"looking at {model}")
        report = qformats.verify(
            model, against=against, options=pairs("option", option), workers=workers, progress=bar
        )
    if not as_json(report.to_dict(), json):
        _print(report)
    if not report.sound:
        raise typer.Exit(EXIT_FAILED)


def _print(report: VerifyReport) -> None:
    """The verdict, then the findings, then what is worth knowing."""
    from qformats.cli.console import console, harmless, plain, size, talk

    verdict = "sound" if report.sound else f"{len(report.findings):,} findings"
    if len(report.findings) == 1:
        verdict = "1 finding"
    if talk.quiet:
        print(harmless(verdict))
        return
    out = console()
    colour = "green" if report.sound else "red"
    files = f"{report.files:,} file{'' if report.files == 1 else 's'}"
    looked = f"{files} ({size(report.nbytes)}), {report.tensors:,} tensors"
    beside = f"compared with {report.record}" if report.checksums else "no checksums to compare with"
    out.print(
        f"{plain(report.path)}  [{colour}]{verdict}[/{colour}]: {looked}, {plain(beside)}", soft_wrap=True
    )
    for each in report.findings[:_SHOWN]:
        out.print(f"[red]{each.kind}[/red]  {plain(str(each))}", soft_wrap=True)
    if len(report.findings) > _SHOWN:
        out.print(f"... and {len(report.findings) - _SHOWN:,} more (--json lists them all)")
    derived = report.derivation
    if derived is not None:
        whose = "the recorded source, byte by byte" if derived.identical else "other files than were recorded"
        out.print(f"against {plain(derived.source)}: {whose}", soft_wrap=True)
        told = f"{derived.same_bytes:,} tensors have the bytes that the recipe gives again"
        if derived.exact:
            told += f", {derived.exact:,} of all keep every value"
        if derived.within:
            told += f"; {derived.within:,} calibrated ones are as close to it as recorded"
        if derived.largest_error is not None:
            told += f" (largest relative error {derived.largest_error:.2%})"
        out.print(told, soft_wrap=True)
    for note in report.notes:
        out.print(plain(note), soft_wrap=True)
