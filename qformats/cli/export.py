"""``qformats export``: write a model in another format."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from qformats.cli import completing
from qformats.cli.again import export_again
from qformats.cli.commands import (
    Address,
    CheckExact,
    DryRun,
    Engine,
    Force,
    Json,
    KeepPartial,
    LoaderOptions,
    RequireExact,
    Verify,
    Workers,
    export_as_told,
    meant,
    opened,
    pair,
    pairs,
)
from qformats.cli.publish import publish_as_told
from qformats.cli.suggestions import WrongCommandLine, example_formats

__all__ = ["export"]

_CARD = "To publish: several formats, or --card"
_MEASURE = "qformats compare measures a model without writing it"


def export(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            help="File or folder, a hub id (organisation/name), or demo; --recipe knows its own.",
            show_default=False,
        ),
    ] = None,
    format: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            "-f",
            metavar="FORMAT",
            autocompletion=completing.formats,
            help="Format such as gguf:q4_0, nf4 or gptq (see qformats formats); several are written in one read.  "
            "\\[required]",
        ),
    ] = None,
    type: Annotated[
        list[str] | None,
        typer.Option(
            "--type",
            "--outtype",
            "-t",
            metavar="TYPE",
            autocompletion=completing.variants,
            help="Variant, such as q4_0; repeatable.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "--outfile",
            "-o",
            help="File or folder to write, or its URL (s3://BUCKET/NAME); a folder for several formats.",
        ),
    ] = None,
    quantizer: Annotated[
        str | None,
        typer.Option(
            autocompletion=completing.quantizers,
            help="Method that chooses codes, if not the format's usual one: rtn, gptq or awq.",
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
    mix: Annotated[
        str,
        typer.Option(
            metavar="MIX",
            help="named: the types that the format's name stands for; measured: no more bytes, spent by calibration.",
        ),
    ] = "named",
    container: Annotated[
        str | None,
        typer.Option(
            autocompletion=completing.containers, help="Container to write, if not the format's usual one."
        ),
    ] = None,
    program: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="PROGRAM",
            help="Refuse what vllm, llama.cpp, transformers or mlx does not load of this output.",
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Run the export again that a qformats.json, or a model with one, records: to the same bytes.",
        ),
    ] = None,
    card: Annotated[
        bool,
        typer.Option(
            "--card",
            help="Write a folder with a model card and checksums for a single format, too.",
            rich_help_panel=_CARD,
        ),
    ] = False,
    text: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Text to measure divergences on, or demo for the included text.",
            rich_help_panel=_CARD,
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            min=4, help="Tokens per window of the text (512), as in compare.", rich_help_panel=_CARD
        ),
    ] = None,
    windows: Annotated[
        int | None,
        typer.Option(min=1, help="Most windows to run; all by default.", rich_help_panel=_CARD),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            metavar="ORGANISATION/NAME",
            help="The model's id on the hub, for the card.",
            rich_help_panel=_CARD,
        ),
    ] = None,
    option: LoaderOptions = None,
    force: Force = False,
    dry_run: DryRun = False,
    check_exact: CheckExact = False,
    require_exact: RequireExact = False,
    keep_partial: KeepPartial = False,
    verify: Verify = False,
    workers: Workers = None,
    engine: Engine = "local",
    address: Address = None,
    json: Json = None,
) -> None:
    """Write a model in another format.

    qformats export ./my-model --format gguf:q4_0 -o my-model.gguf

    The target appears only when all of it is written, checked and synced. A killed export goes on where it
    stopped when the same command is run again.

    With several formats, or --card, -o is a folder that also gets a model card and checksums, to be published.
    """
    from qformats.cli.console import Bar
    from qformats.cli.declared import given
    from qformats.errors import ConfigError, Described, OutputError
    from qformats.work.urls import url_of

    declared = given(context)
    url = url_of(output) if output else None
    if url and (card or recipe is not None):
        raise OutputError(url, "is a URL", "With --card or --recipe, give a folder and copy it there")
    if recipe is not None:
        export_again(
            recipe,
            model,
            output,
            beside={
                "format": format,
                "type": type,
                "quantizer": quantizer,
                "tensor-type": tensor_type,
                "output-tensor-type": output_tensor_type,
                "token-embedding-type": token_embedding_type,
                "pure": pure,
                "mix": mix if mix != "named" else "",
                "container": container,
                "for": program,
                "card": card,
                "text": text,
                "option": option or declared.loader,
                "check-exact": check_exact,
                "require-exact": require_exact,
            },
            imatrix=imatrix or (),
            quantizer_options=pairs("quantizer-option", quantizer_option) | declared.quantizer,
            force=force,
            dry_run=dry_run,
            keep_partial=keep_partial,
            workers=workers,
            engine=engine,
            address=address,
            json=json,
        )
        return
    if model is None:
        raise _no_model(format or [])
    if "" in (*(type or ()), *(format or ())):
        # An unset variable in a script, most likely; the default would be a surprise.
        raise ConfigError(
            "--type" if format else "--format", "", "a name; leave the option out for the default"
        )
    if not format and not type:
        raise _no_format(model, output)
    options = pairs("option", option) | declared.loader
    words = _words(format or [], type or [])
    # A misspelt format is reported before a model is fetched.
    names = [meant(word, output if len(words) == 1 else None).name for word in words]
    published = card or len(names) > 1
    for_card = {"text": text, "window": window, "windows": windows, "base-model": base_model}
    for name, value in for_card.items() if not published else ():
        if value is not None:
            raise ConfigError(
                f"--{name}", value, "--card, or several --format, whose model card it is for", hint=_MEASURE
            )
    if published and mix != "named":
        raise ConfigError(
            "--mix", mix, "named where a model card is written: export a measured one by itself"
        )
    if published and url:
        raise OutputError(url, "is a URL", "For several formats, give a folder and copy it there")
    if published and (engine != "local" or address is not None):
        found = Described(f"{engine} for a folder with a model card, which this machine writes by itself")
        raise ConfigError("--engine", found, "one --format without --card")
    with Bar() as bar:
        source = opened(model, options, bar, adapter=not published)
    shared: dict[str, Any] = {
        "quantizer": quantizer,
        "quantizer_options": pairs("quantizer-option", quantizer_option) | declared.quantizer,
        "imatrix": imatrix or (),
        "tensor_types": [pair("tensor-type", text) for text in tensor_type or ()],
        "output_type": output_tensor_type,
        "token_embedding_type": token_embedding_type,
        "pure": pure,
        "container": container,
        "program": program,
        "options": options,
        "force": force,
        "dry_run": dry_run,
        "check_exact": check_exact,
        "require_exact": require_exact,
        "keep_partial": keep_partial,
        "verify": verify,
        "workers": workers,
        "json": json,
    }
    if published:
        publish_as_told(
            source,
            output,
            formats=names,
            text=text,
            window=window,
            windows=windows,
            base_model=base_model,
            **shared,
        )
        return
    export_as_told(source, output, format=names[0], mix=mix, engine=engine, address=address, **shared)


def _words(formats: Sequence[str], types: Sequence[str]) -> list[str]:
    """What each format is called: ``--format gguf --type q4_0 --type q5_0`` means two."""
    from qformats.errors import ConfigError

    if not types:
        return list(formats)
    if len(formats) > 1:
        example = f"--format {formats[0].partition(':')[0]}:{types[0]}"
        raise ConfigError("--type", types[0], f"no --type beside several --format; write {example}")
    if formats and ":" in formats[0]:
        raise ConfigError("--type", types[0], f"no --type, since --format {formats[0]} names one already")
    return [":".join((*formats, type)) for type in types]


def _no_model(formats: Sequence[str]) -> WrongCommandLine:
    """Which model? With examples."""
    name = formats[0] if formats else example_formats("")[0]
    lines = [
        shlex.join(["qformats", "export", "./my-model", "--format", name]),
        "qformats export --recipe ./exported/qformats.json",
    ]
    return WrongCommandLine("MODEL is missing. For example", lines)


def _no_format(model: str, output: Path | None) -> WrongCommandLine:
    """Which format? With examples."""
    target = ["--output", str(output)] if output else []
    names = example_formats(output.suffix if output else "")
    lines = [shlex.join(["qformats", "export", model, "--format", name, *target]) for name in names[:3]]
    return WrongCommandLine("--format is missing. qformats formats lists all of them; for example", lines)
