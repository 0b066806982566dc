"""What commands, including plugins', are made of: shared options, and an export that follows them.

A plugin names its commands in the entry-point group ``qformats.commands``; each is a typer function.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qformats.cli import completing
from qformats.cli.reporting import Json

if TYPE_CHECKING:
    from qformats.cli.console import Bar
    from qformats.interfaces import Checkpoint, Packer

__all__ = [
    "Address",
    "CheckExact",
    "ComputeDtype",
    "Device",
    "DryRun",
    "Engine",
    "Force",
    "Json",
    "KeepPartial",
    "LoadedFormat",
    "LoaderOptions",
    "RequireExact",
    "Verify",
    "Workers",
    "export_as_told",
    "meant",
    "opened",
    "pair",
    "pairs",
]

LoaderOptions = Annotated[
    list[str] | None,
    typer.Option("--option", "-O", metavar="NAME=VALUE", help="Any other option of a loader."),
]
Device = Annotated[
    str | None,
    typer.Option(
        autocompletion=completing.devices, help="cpu, cuda, cuda:1, ...; by default a GPU if there is one."
    ),
]
ComputeDtype = Annotated[
    str | None, typer.Option(metavar="TYPE", help="Dtype to compute in: f32, f16 or bf16.")
]
LoadedFormat = Annotated[
    str | None,
    typer.Option(
        "--format",
        "-f",
        autocompletion=completing.formats,
        help="Quantize into this format while loading.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing target.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan with exact sizes; write nothing.")]
CheckExact = Annotated[
    bool, typer.Option("--check-exact", help="Read the model once to tell which tensors stay unchanged.")
]
RequireExact = Annotated[
    bool, typer.Option("--require-exact", help="Fail before writing if a value would change.")
]
KeepPartial = Annotated[
    bool,
    typer.Option("--keep-partial", help="If interrupted, keep what is written, to go on from there later."),
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify",
        help="Compare every byte of a model that qformats has written with its record, not only a sample.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option("--threads", "--workers", "-j", min=1, help="Threads; all cores by default."),
]
Engine = Annotated[
    str,
    typer.Option(
        metavar="ENGINE",
        help="Who converts: local, this machine, or ray, a cluster whose nodes share model and target.",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Of the cluster: auto, HOST:PORT of its head, or local for one on this machine alone.",
    ),
]


KEPT = "what was written is kept; run the same command again to go on"
"""Said of an interrupted export whose partial output stays."""


def pairs(what: str, texts: Iterable[str] | None) -> dict[str, str]:
    """Names and values of a repeatable option ``--what NAME=VALUE``.

    Examples
    --------
    >>> from qformats.cli.commands import pairs
    >>> pairs("option", ["arch=llama", "pre=default"])
    {'arch': 'llama', 'pre': 'default'}
    """
    return dict(pair(what, text) for text in texts or ())


def pair(what: str, text: str) -> tuple[str, str]:
    """Split an option's ``NAME=VALUE`` or ``REGEX=TYPE``.

    Examples
    --------
    >>> from qformats.cli.commands import pair
    >>> pair("option", "arch=llama"), pair("tensor-type", "attn_[qk]=q8_0")
    (('arch', 'llama'), ('attn_[qk]', 'q8_0'))
    """
    from qformats.errors import ConfigError

    name, equals, value = text.rpartition("=") if what == "tensor-type" else text.partition("=")
    if not equals or not name or not value:
        raise ConfigError(f"--{what}", text, "REGEX=TYPE" if what == "tensor-type" else "NAME=VALUE")
    return name, value


def meant(name: str, output: Path | None = None) -> Packer:
    """Format that the user means, said in one line if its name is not what they wrote.

    Parameters
    ----------
    name : str
        What the user wrote: ``gguf:q4_0``, ``nf4``, ``bnb``.
    output : Path, optional
        What will be written: a name that several formats share means the one whose files end like that.

    Raises
    ------
    UnknownFormatError, AmbiguousFormatError
        If it is the name of no format, or of several.

    Examples
    --------
    >>> from qformats.cli.commands import meant
    >>> meant("gguf:q4_0").name
    'gguf:q4_0'
    """
    from qformats.cli.console import note
    from qformats.registry import registry

    packer = registry().meant(name, output.suffix if output else "")
    if name.lower() not in (packer.name, packer.family):
        note(f"{name} is {packer.name}: {packer.spec.summary}")
    return packer


def opened(model: str, options: Mapping[str, str], bar: Bar, *, adapter: bool = False) -> Checkpoint:
    """Open what the user names, and say so meanwhile: large models have many headers, and the hub is far.

    Raises
    ------
    ModelNotFoundError, CheckpointError, OutputError
        See :func:`qformats.open`.

    Examples
    --------
    >>> from qformats.cli.commands import opened
    >>> from qformats.cli.console import Bar
    >>> with Bar() as bar:
    ...     opened("demo", {}, bar).name
    'demo-llama'
    """
    import qformats
    from qformats.cli.console import note, size
    from qformats.sources import download_of
    from qformats.work.urls import url_of

    url = url_of(model)
    if url is not None:
        bar.start(f"asking for {url}")
        download = download_of(url)
        total = sum(download.missing.values())
        if total:
            note(f"{url}: {size(total)} are fetched into {download.folder}")
            bar.start(f"fetching {url}", total)
        return qformats.open(download.fetch(bar.advance), options=options, adapter=adapter)
    if "/" in model and not model.startswith((".", "/", "~")) and not Path(model).exists():
        # The hub's client has bars of its own.
        with bar.aside(f"asking the hub for {model}"):
            return qformats.open(model, options=options)
    bar.start(f"reading the headers of {model}")
    return qformats.open(model, options=options, adapter=adapter)


def export_as_told(
    source: Checkpoint,
    output: Path | None,
    *,
    format: str,
    quantizer: str | None = None,
    quantizer_options: Mapping[str, str] | None = None,
    imatrix: Iterable[str] = (),
    tensor_types: Iterable[tuple[str, str]] = (),
    output_type: str | None = None,
    token_embedding_type: str | None = None,
    pure: bool = False,
    mix: str = "named",
    container: str | None = None,
    program: str | None = None,
    options: Mapping[str, str] | None = None,
    force: bool = False,
    dry_run: bool = False,
    check_exact: bool = False,
    require_exact: bool = False,
    keep_partial: bool = False,
    verify: bool = False,
    workers: int | None = None,
    engine: str = "local",
    address: str | None = None,
    json: str | None = None,
) -> None:
    """Export a model, or show the plan of an export, and print the result.

    Parameters
    ----------
    source : Checkpoint
        The model.
    output : Path or None
        File or folder to write; by default it is named after the model and the format.
    format, quantizer, quantizer_options, imatrix, tensor_types, output_type, token_embedding_type, pure, mix, container
        See :func:`qformats.export`.
    program, options
        See :func:`qformats.export`.
    force, dry_run, check_exact, require_exact, keep_partial, verify, workers, engine, address, json
        The shared options of this module.

    Examples
    --------
    >>> import qformats
    >>> from qformats.cli.commands import export_as_told
    >>> export_as_told(qformats.open("demo"), None, format="glm:int4", dry_run=True)
    tensor ... Nothing was written. demo-llama-int4 would take 4,223,668 bytes ...
    """
    from qformats.cli.console import Bar
    from qformats.cli.summary import print_report
    from qformats.exporting import Recipe, make_plan
    from qformats.exporting.check import check_exact as check
    from qformats.exporting.check import require_exact as refuse_inexact
    from qformats.exporting.engines.named import named, require_known
    from qformats.exporting.recorded import require_unchanged
    from qformats.exporting.report import answered, report_of
    from qformats.exporting.run import execute
    from qformats.exporting.uploads import destined
    from qformats.registry import registry
    from qformats.work.pool import threads

    packer = registry().writable(format)
    recipe = Recipe(
        packer.name,
        quantizer=quantizer or "",
        imatrix=tuple(imatrix),
        tensor_types=tuple(tensor_types),
        output_type=output_type,
        token_embedding_type=token_embedding_type,
        pure=pure,
        container=container,
        quantizer_options=tuple((quantizer_options or {}).items()),
        program=program or "",
    )
    suffix = recipe.loader(source).suffix
    usual = Path(f"{source.name}-{packer.spec.variant}{suffix}")
    planned = dry_run or check_exact
    require_known(engine, address)
    # A plan needs no cluster.
    worked = named("local") if planned else named(engine, address)
    try:
        with Bar() as bar, worked as chosen:
            target, upload = destined(output or usual, force=force)
            if mix != "named":
                from qformats.calibration.measured import with_mix

                recipe = with_mix(mix, source, target, recipe, options or {}, bar, verify=verify)
                # Which has compared every byte already.
                verify = False
            bar.start("planning")
            plan = make_plan(source, target, recipe, options or {})
            if planned:
                report = report_of(plan)
                if check_exact or require_exact:
                    require_unchanged(source, verify=verify, progress=bar)
                reasons = check(plan, threads(workers), bar) if check_exact else None
                if reasons is not None:
                    report = answered(report, reasons)
                if require_exact:
                    refuse_inexact(plan, threads(workers), bar, reasons)
            else:
                report = execute(
                    plan,
                    force=force,
                    workers=workers,
                    keep_partial=keep_partial,
                    require_exact=require_exact,
                    verify=verify,
                    engine=chosen,
                    upload=upload,
                    progress=bar,
                )
            if planned and upload is not None:
                report = replace(report, target=upload.url, run_with="")
    except KeyboardInterrupt:
        if planned or not keep_partial:
            raise
        raise KeyboardInterrupt(KEPT) from None
    print_report(report, json, planned=planned)
