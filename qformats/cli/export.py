"""``qformats export``: write a model in another format."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qformats.cli.options import (
    CheckExact,
    DryRun,
    Force,
    Json,
    KeepPartial,
    LoaderOptions,
    RequireExact,
    Workers,
)

if TYPE_CHECKING:
    from rich.console import Console

    from qformats.exporting import ExportReport
    from qformats.exporting.plan import Plan

__all__ = ["carry_out", "export", "pair"]

_SHOWN_REASONS = 3
"""Reasons for rounding that a summary lists."""


def export(
    model: Annotated[str, typer.Argument(help="File or folder, a hub id (organisation/name), or demo.")],
    format: Annotated[str, typer.Option("--format", "-f", help="Family, or family:variant (see formats).")],
    type: Annotated[str | None, typer.Option("--type", "-t", help="Variant, such as q4_0.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File or folder to make.")] = None,
    quantizer: Annotated[str, typer.Option(help="How codes are chosen.")] = "rtn",
    quantizer_option: Annotated[
        list[str] | None,
        typer.Option("--quantizer-option", "-Q", metavar="NAME=VALUE", help="An option of the quantizer."),
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(metavar="FILE", help="Text that a calibrating quantizer runs the model on.")
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Windows of that text.")] = None,
    sequence_length: Annotated[int | None, typer.Option(min=1, help="Tokens of a window.")] = None,
    log: Annotated[
        Path | None, typer.Option(help="File for what a calibrating quantizer did to each layer.")
    ] = None,
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
    container: Annotated[
        str | None, typer.Option(help="Container to write, where it is not the format's usual one.")
    ] = None,
    arch: Annotated[str | None, typer.Option(help="Architecture, where the model does not tell it.")] = None,
    pre: Annotated[str | None, typer.Option(help="Pre-tokenizer, where it is not recognised.")] = None,
    max_shard_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Split files, such as 2GB.")
    ] = None,
    option: LoaderOptions = None,
    force: Force = False,
    dry_run: DryRun = False,
    check_exact: CheckExact = False,
    require_exact: RequireExact = False,
    keep_partial: KeepPartial = False,
    workers: Workers = None,
    json: Json = False,
) -> None:
    """Write a model in another format.

    The target appears only when all of it is written, checked and synced. A killed export goes on where it
    stopped when the same command is given again.
    """
    import qformats
    from qformats.errors import ConfigError
    from qformats.exporting import Recipe, make_plan
    from qformats.registry import registry

    if type and ":" in format:
        raise ConfigError("--type", type, f"none, since --format {format} names one already")
    if type == "" or format == "":
        # An unset variable in a script, most likely; the default would be a surprise.
        raise ConfigError(
            "--type" if format else "--format", "", "a name; leave the option out for the default"
        )
    name = f"{format}:{type}" if type else format
    packer = registry().packer(name)
    options = dict(pair("option", text) for text in option or ())
    for key, value in (("arch", arch), ("pre", pre), ("max-shard-size", max_shard_size)):
        if value is not None:
            options[key] = value
    given = [pair("quantizer-option", text) for text in quantizer_option or ()]
    for key, what in (
        ("calibration", calibration),
        ("samples", samples),
        ("sequence-length", sequence_length),
        ("log", log),
    ):
        if what is not None:
            given.append((key, str(what)))
    recipe = Recipe(
        packer.name,
        quantizer=quantizer,
        tensor_types=tuple(pair("tensor-type", text) for text in tensor_type or ()),
        output_type=output_tensor_type,
        token_embedding_type=token_embedding_type,
        pure=pure,
        container=container,
        quantizer_options=tuple(given),
    )
    source = qformats.open(model, options=options)
    suffix = recipe.loader(source).suffix
    target = output.expanduser() if output else Path(f"{source.name}-{packer.spec.variant}{suffix}")
    carry_out(
        make_plan(source, target, recipe, options),
        force=force,
        dry_run=dry_run,
        check_exact=check_exact,
        require_exact=require_exact,
        keep_partial=keep_partial,
        workers=workers,
        json=json,
    )


def carry_out(
    plan: Plan,
    *,
    force: bool,
    dry_run: bool,
    check_exact: bool,
    require_exact: bool,
    keep_partial: bool,
    workers: int | None,
    json: bool,
) -> None:
    """Execute or show a plan as the options say, and print what became of it."""
    from qformats.cli.console import Bar, print_json
    from qformats.exporting.check import check_exact as check
    from qformats.exporting.check import require_exact as refuse_inexact
    from qformats.exporting.report import report_of, settled
    from qformats.exporting.run import execute, threads

    planned = dry_run or check_exact
    if planned:
        report = report_of(plan)
        with Bar() as bar:
            reasons = check(plan, threads(workers), bar) if check_exact else None
            if reasons is not None:
                report = settled(report, reasons)
            if require_exact:
                refuse_inexact(plan, threads(workers), bar, reasons)
    else:
        try:
            with Bar() as bar:
                report = execute(
                    plan,
                    force=force,
                    workers=workers,
                    keep_partial=keep_partial,
                    require_exact=require_exact,
                    progress=bar,
                )
        except KeyboardInterrupt:
            if not keep_partial:
                raise
            raise KeyboardInterrupt("what is written is kept; the same command goes on from there") from None
    if json:
        print_json(report.to_dict())
    elif planned:
        _print_plan(report)
    else:
        _print_summary(report)


def pair(what: str, text: str) -> tuple[str, str]:
    """Split an option's ``NAME=VALUE`` or ``REGEX=TYPE``."""
    from qformats.errors import ConfigError

    name, equals, value = text.rpartition("=") if what == "tensor-type" else text.partition("=")
    if not equals or not name or not value:
        raise ConfigError(f"--{what}", text, "REGEX=TYPE" if what == "tensor-type" else "NAME=VALUE")
    return name, value


def _print_plan(report: ExportReport) -> None:
    from qformats.cli.console import console, plain, size, table

    out = console()
    # Whether values change is a question where the source is quantized; plain numbers always are rounded.
    quantized = any(tensor.action in ("transcoded", "requantized") for tensor in report.tensors)
    exact = ["unchanged"] if quantized else []
    rows = table("tensor", "shape", "from", "to", "bytes", *exact, right=("bytes", "shape"))
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
        f"({size(report.file_nbytes)}), {report.bits_per_weight:.2f} bits a weight."
    )


def _print_summary(report: ExportReport) -> None:
    from qformats.cli.console import console, plain, size, table

    out = console()
    types = ", ".join(f"{count} {_variant(name)}" for name, count in report.types.items())
    before = report.source_nbytes * 8 / max(1, report.parameters)
    rows = table("", "")
    rows.add_row("tensors", f"{len(report.tensors)}: {types}")
    rows.add_row("weights", f"{report.parameters:,} ({plain(report.architecture)})")
    rows.add_row("bytes in", f"{report.source_nbytes:,} ({size(report.source_nbytes)})")
    files = f" in {len(report.files)} files" if len(report.files) > 1 else ""
    rows.add_row("bytes out", f"{report.file_nbytes:,} ({size(report.file_nbytes)}){files}")
    rows.add_row("bits a weight", f"{before:.2f} -> {report.bits_per_weight:.2f}")
    rows.add_row("time", f"{report.seconds:.1f} s")
    out.print(f"[bold]{plain(report.target)}[/bold]  {report.format}, quantizer {plain(report.quantizer)}")
    out.print(rows)
    _print_notes(out, report, every=False)
    rounded = Counter(_variant(t.format) for t in report.tensors if t.rounded)
    for kind, count in rounded.items():
        out.print(f"{_tensors(count)} {'was' if count == 1 else 'were'} cast to {kind} from a wider dtype")
    if report.run_with:
        # No wrapping: a command is copied as a whole.
        out.print(f"Run it:  [bold]{plain(report.run_with)}[/bold]", soft_wrap=True)
    elif _needs_us(Path(report.target)):
        out.print(
            "Load it with qformats.from_pretrained, or with Transformers after: "
            "import qformats; qformats.register_with_transformers()",
            soft_wrap=True,
        )


def _needs_us(target: Path) -> bool:
    """Whether Transformers knows the quantization method of a folder only from here."""
    import json

    config = target / "config.json"
    if not config.is_file():
        return False
    declared = json.loads(config.read_bytes()).get("quantization_config") or {}
    return bool(declared.get("quant_method") == "qformats")


def _print_notes(out: Console, report: ExportReport, every: bool) -> None:
    """Why tensors got another type than the one asked for, the usual reasons only with `every`."""
    from qformats.cli.console import plain

    noted: dict[tuple[str, str], list[str]] = {}
    for tensor in report.tensors:
        if tensor.note and (every or not tensor.kept):
            noted.setdefault((_variant(tensor.format), tensor.note), []).append(tensor.name)
    for (kind, note), names in noted.items():
        shown = names[0] if len(names) == 1 else f"{len(names)} tensors ({names[0]}, ...)"
        out.print(f"{plain(shown)}: {kind}, {plain(note)}")
    _print_exactness(out, report, every)


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
            f"{len(unknown)} quantized tensors: whether they can keep every value needs the data (--check-exact)"
        )
    lost = {t.name: t for t in moved if t.exact in ("never", "no")}
    groups = alike({name: t.reason for name, t in lost.items()})
    for names in groups[: None if every else _SHOWN_REASONS]:
        shown = names[0] if len(names) == 1 else f"{len(names)} tensors ({names[0]}, ...)"
        errors = [error for name in names if (error := lost[name].relative_error) is not None]
        cost = f"; relative error {_span(errors)}" if errors else ""
        since = "since" if len(names) == 1 else "the first since"
        out.print(f"{plain(shown)}: rounded once more, {since} {plain(lost[names[0]].reason)}{cost}")
    if len(groups) > _SHOWN_REASONS and not every:
        out.print(f"... and for {len(groups) - _SHOWN_REASONS} other reasons (all of them in qformats.json)")
    if lost:
        out.print("An unquantized source gives a better result for tensors that are rounded once more")


def _tensors(count: int, kind: str = "") -> str:
    return f"{count} {kind}tensor{'' if count == 1 else 's'}"


def _span(errors: list[float]) -> str:
    low, high = min(errors), max(errors)
    return f"{low:.2%}" if f"{low:.2%}" == f"{high:.2%}" else f"{low:.2%} to {high:.2%}"


def _variant(format: str) -> str:
    return format.partition(":")[2]
