"""``qformats merge``: a trained adapter added to the weights of its base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qformats.cli import completing
from qformats.cli.commands import Force, Json, LoaderOptions, Verify, Workers, meant, pairs

if TYPE_CHECKING:
    from qformats.exporting import ExportReport

__all__ = ["merge"]


def merge(
    adapter: Annotated[Path, typer.Argument(help="Folder with adapter_config.json, as PEFT saves it.")],
    base: Annotated[
        str,
        typer.Argument(help="Model that it was trained on, in any format: file, folder, hub id, or demo."),
    ],
    output: Annotated[Path, typer.Option("--output", "--outfile", "-o", help="File or folder to write.")],
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            "-f",
            autocompletion=completing.formats,
            help="Format of the result; by default each tensor keeps its own.",
        ),
    ] = None,
    option: LoaderOptions = None,
    force: Force = False,
    verify: Verify = False,
    workers: Workers = None,
    json: Json = None,
) -> None:
    """Add a LoRA adapter to its base model and write the result.

    qformats merge ./my-adapter ./my-model -o merged

    Where the base is quantized, changed weights are quantized again; --format dense:bf16 keeps all of the sum.
    """
    import qformats
    from qformats.cli.console import Bar, console, harmless, plain, talk
    from qformats.cli.reporting import as_json
    from qformats.cli.summary import print_summary

    with Bar() as bar:
        bar.start("reading the headers of the adapter and its base")
        report = qformats.merge_adapter(
            adapter,
            output,
            format=format and meant(format).name,
            source=base,
            force=force,
            verify=verify,
            workers=workers,
            options=pairs("option", option),
            progress=bar,
        )
    report = replace(report, export=_without_rules(report.export))
    if as_json(report.to_dict(), json):
        return
    if talk.quiet:
        print(harmless(report.export.target))
        return
    print_summary(report.export)
    if not report.warned:
        console().print(plain(str(report)), soft_wrap=True)


def _without_rules(export: ExportReport) -> ExportReport:
    """A report that does not name rules: a user gives none here, and those of merging say what the formats show."""
    tensors = tuple(replace(t, note="") if t.note.startswith("by rule ") else t for t in export.tensors)
    return replace(export, tensors=tensors)
