"""``qformats export``: write a model in another format."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from qformats.cli import completing
from qformats.cli.commands import (
    CheckExact,
    DryRun,
    Force,
    Json,
    KeepPartial,
    LoaderOptions,
    RequireExact,
    Workers,
    export_as_told,
    meant,
    opened,
    pair,
    pairs,
)
from qformats.cli.suggestions import WrongCommandLine, example_formats

__all__ = ["export"]


def export(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="File or folder, a hub id (organisation/name), or demo.")],
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            "-f",
            autocompletion=completing.formats,
            help="Format such as gguf:q4_0, nf4 or gptq (see qformats formats).  \\[required]",
        ),
    ] = None,
    type: Annotated[
        str | None,
        typer.Option(
            "--type", "--outtype", "-t", autocompletion=completing.variants, help="Variant, such as q4_0."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "--outfile", "-o", help="File or folder to write.")
    ] = None,
    quantizer: Annotated[
        str | None,
        typer.Option(
            autocompletion=completing.quantizers,
            help="Method that chooses codes, if not the format's usual one: rtn or gptq.",
        ),
    ] = None,
    quantizer_option: Annotated[
        list[str] | None,
        typer.Option("--quantizer-option", "-Q", metavar="NAME=VALUE", help="An option of the quantizer."),
    ] = None,
    imatrix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Importance matrix to weigh errors by (see qformats imatrix); several are added up.",
        ),
    ] = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REGEX=TYPE", help="Type of tensors whose name matches; repeatable, the first match wins."
        ),
    ] = None,
    output_tensor_type: Annotated[
        str | None,
        typer.Option(metavar="TYPE", autocompletion=completing.variants, help="Type of the output layer."),
    ] = None,
    token_embedding_type: Annotated[
        str | None,
        typer.Option(metavar="TYPE", autocompletion=completing.variants, help="Type of the token embedding."),
    ] = None,
    pure: Annotated[
        bool, typer.Option("--pure", help="One type for all tensors, without the container's own mix.")
    ] = False,
    container: Annotated[
        str | None,
        typer.Option(
            autocompletion=completing.containers, help="Container to write, if not the format's usual one."
        ),
    ] = None,
    option: LoaderOptions = None,
    force: Force = False,
    dry_run: DryRun = False,
    check_exact: CheckExact = False,
    require_exact: RequireExact = False,
    keep_partial: KeepPartial = False,
    workers: Workers = None,
    json: Json = None,
) -> None:
    """Write a model in another format.

    qformats export ./my-model --format gguf:q4_0 -o my-model.gguf

    The target appears only when all of it is written, checked and synced. A killed export goes on where it
    stopped when the same command is run again.
    """
    from qformats.cli.console import Bar
    from qformats.cli.declared import given
    from qformats.errors import ConfigError

    if type == "" or format == "":
        # An unset variable in a script, most likely; the default would be a surprise.
        raise ConfigError(
            "--type" if format else "--format", "", "a name; leave the option out for the default"
        )
    if format is None and type is None:
        raise _no_format(model, output)
    if type and format and ":" in format:
        raise ConfigError("--type", type, f"no --type, since --format {format} names one already")
    declared = given(context)
    options = pairs("option", option) | declared.loader
    # A misspelt format is reported before a model is fetched.
    name = meant(":".join(word for word in (format, type) if word), output).name
    with Bar() as bar:
        source = opened(model, options, bar)
    export_as_told(
        source,
        output,
        format=name,
        quantizer=quantizer,
        quantizer_options=pairs("quantizer-option", quantizer_option) | declared.quantizer,
        imatrix=imatrix or (),
        tensor_types=[pair("tensor-type", text) for text in tensor_type or ()],
        output_type=output_tensor_type,
        token_embedding_type=token_embedding_type,
        pure=pure,
        container=container,
        options=options,
        force=force,
        dry_run=dry_run,
        check_exact=check_exact,
        require_exact=require_exact,
        keep_partial=keep_partial,
        workers=workers,
        json=json,
    )


def _no_format(model: str, output: Path | None) -> WrongCommandLine:
    """Which format? With examples."""
    target = ["--output", str(output)] if output else []
    names = example_formats(output.suffix if output else "")
    lines = [shlex.join(["qformats", "export", model, "--format", name, *target]) for name in names[:3]]
    return WrongCommandLine("--format is missing. qformats formats lists all of them; for example", lines)
