"""``qformats export``: write a model in another format."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from qformats.export import ExportReport

__all__ = ["export"]


def export(
    model: Annotated[str, typer.Argument(help="File or folder, a hub id (organisation/name), or demo.")],
    format: Annotated[str, typer.Option("--format", "-f", help="Family, or family:variant (see formats).")],
    type: Annotated[str | None, typer.Option("--type", "-t", help="Variant, such as q4_0.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File or folder to make.")] = None,
    quantizer: Annotated[str, typer.Option(help="How codes are chosen.")] = "rtn",
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REGEX=TYPE", help="Type of the tensors whose name matches; repeatable, first wins."
        ),
    ] = None,
    output_tensor_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Type of the output layer.")
    ] = None,
    token_embedding_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Type of the token embedding.")
    ] = None,
    pure: Annotated[
        bool, typer.Option("--pure", help="One type for all, without the container's own mix.")
    ] = False,
    arch: Annotated[str | None, typer.Option(help="Architecture, where the model does not tell it.")] = None,
    pre: Annotated[str | None, typer.Option(help="Pre-tokenizer, where it is not recognised.")] = None,
    max_shard_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Split files, such as 2GB.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-O", metavar="NAME=VALUE", help="Any other option of a loader."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing target.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan with exact sizes; write nothing.")
    ] = False,
    keep_partial: Annotated[
        bool, typer.Option("--keep-partial", help="When interrupted, keep what is written, to go on later.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option("--workers", "-j", min=1, help="Threads; all cores by default.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Write a model in another format.

    The target appears only when all of it is written, checked and synced. A killed export goes on where it
    stopped when the same command is given again.
    """
    import qformats
    from qformats.cli.console import Bar, print_json
    from qformats.export import Recipe, make_plan
    from qformats.export.report import report_of
    from qformats.export.run import execute
    from qformats.registry import registry

    name = f"{format}:{type}" if type else format
    packer = registry().packer(name)
    options = dict(_pair("option", text) for text in option or ())
    for key, value in (("arch", arch), ("pre", pre), ("max-shard-size", max_shard_size)):
        if value is not None:
            options[key] = value
    recipe = Recipe(
        packer.name,
        quantizer=quantizer,
        tensor_types=tuple(_pair("tensor-type", text) for text in tensor_type or ()),
        output_type=output_tensor_type,
        token_embedding_type=token_embedding_type,
        pure=pure,
    )
    source = qformats.open(model, options=options)
    suffix = registry().loader(packer.container).suffix
    target = output or Path(f"{source.name}-{packer.spec.variant}{suffix}")
    plan = make_plan(source, target, recipe, options)
    if dry_run:
        report = report_of(plan)
    else:
        with Bar() as bar:
            report = execute(plan, force=force, workers=workers, keep_partial=keep_partial, progress=bar)
    if json:
        print_json(report.to_dict())
    elif dry_run:
        _print_plan(report)
    else:
        _print_summary(report)


def _pair(what: str, text: str) -> tuple[str, str]:
    from qformats.errors import ConfigError

    name, equals, value = text.rpartition("=") if what == "tensor-type" else text.partition("=")
    if not equals or not name or not value:
        raise ConfigError(f"--{what}", text, "NAME=VALUE" if what == "option" else "REGEX=TYPE")
    return name, value


def _print_plan(report: ExportReport) -> None:
    from qformats.cli.console import console, size, table

    out = console()
    rows = table("tensor", "shape", "from", "to", "", "bytes", right=("bytes", "shape"))
    for tensor in report.tensors:
        shape = " x ".join(map(str, tensor.shape))
        change = tensor.action + (f" ({tensor.note})" if tensor.note else "")
        rows.add_row(tensor.name, shape, tensor.source_format, tensor.format, change, f"{tensor.nbytes:,}")
    out.print(rows)
    files = table("file", "bytes", right=("bytes",))
    for name, nbytes in report.files:
        files.add_row(name, f"{nbytes:,}")
    out.print(files)
    out.print(
        f"Nothing was written. {report.target} would take {report.file_nbytes:,} bytes ({size(report.file_nbytes)}), "
        f"{report.bits_per_weight:.2f} bits a weight."
    )


def _print_summary(report: ExportReport) -> None:
    from qformats.cli.console import console, size, table

    out = console()
    types = ", ".join(f"{count} {name.partition(':')[2]}" for name, count in report.types.items())
    before = report.source_nbytes * 8 / max(1, report.parameters)
    rows = table("", "")
    rows.add_row("tensors", f"{len(report.tensors)}: {types}")
    rows.add_row("weights", f"{report.parameters:,} ({report.architecture})")
    rows.add_row("bytes in", f"{report.source_nbytes:,} ({size(report.source_nbytes)})")
    rows.add_row("bytes out", f"{report.file_nbytes:,} ({size(report.file_nbytes)})")
    rows.add_row("bits a weight", f"{before:.2f} -> {report.bits_per_weight:.2f}")
    rows.add_row("time", f"{report.seconds:.1f} s")
    rows.show_header = False
    out.print(f"[bold]{report.target}[/bold]  {report.format}, quantizer {report.quantizer}")
    out.print(rows)
    notes = Counter(
        (t.format.partition(":")[2], t.note) for t in report.tensors if t.note and not _is_plain(t.note)
    )
    for (kind, note), count in notes.items():
        names = [t.name for t in report.tensors if t.note == note and t.format.endswith(":" + kind)]
        shown = names[0] if count == 1 else f"{count} tensors ({names[0]}, ...)"
        out.print(f"{shown}: {kind}, {note}")
    requantized = [t for t in report.tensors if t.action == "requantized"]
    if requantized:
        out.print(f"{len(requantized)} tensors were quantized before and lost accuracy a second time.")
    if report.run_with:
        out.print(f"Run it:  [bold]{report.run_with}[/bold]")


def _is_plain(note: str) -> bool:
    """Notes that say the usual: every model has norms."""
    return note in ("vector", "not a linear weight", "kept in full precision by llama.cpp")
