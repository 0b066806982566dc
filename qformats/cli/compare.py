"""``qformats compare``: the same model in several formats, side by side."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qformats.cli.options import LoaderOptions, Workers

if TYPE_CHECKING:
    from rich.console import Console

    from qformats.comparing.report import CompareReport, Estimate, IdenticalTensors, ModelResult

__all__ = ["compare"]

_STDOUT = "-"
_TINY = 1e-4
"""Divergences below it are written with an exponent."""


def compare(
    base: Annotated[
        str, typer.Argument(help="What the others are measured against: file, folder, hub id, or demo.")
    ],
    models: Annotated[list[str] | None, typer.Argument(help="The others, in any format.")] = None,
    text: Annotated[
        str | None,
        typer.Option(
            "--text",
            "-t",
            metavar="FILE",
            help="Text to run the models on, or demo for one that comes along.",
        ),
    ] = None,
    try_: Annotated[
        list[str] | None,
        typer.Option("--try", metavar="FORMAT", help="Quantize the base on the fly; repeatable."),
    ] = None,
    quantizer: Annotated[str, typer.Option(help="With --try: how codes are chosen.")] = "rtn",
    quantizer_option: Annotated[
        list[str] | None,
        typer.Option("--quantizer-option", "-Q", metavar="NAME=VALUE", help="An option of the quantizer."),
    ] = None,
    pure: Annotated[
        bool, typer.Option("--pure", help="With --try: one type for all, without the container's own mix.")
    ] = False,
    window: Annotated[int, typer.Option(min=4, help="Tokens of a window; its second half is scored.")] = 512,
    windows: Annotated[int | None, typer.Option(min=1, help="Windows at most; all by default.")] = None,
    logits: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep what the base predicts, for the next time.")
    ] = None,
    speed: Annotated[bool, typer.Option("--speed", help="Measure speed and memory too.")] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ...; a GPU by default if there is one.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(metavar="TYPE", help="f32, f16 or bf16, for what is computed.")
    ] = "f32",
    json: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write all numbers as JSON; - for standard output.")
    ] = None,
    csv: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write a line a model; - for standard output.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one page with charts, which needs no network.")
    ] = None,
    option: LoaderOptions = None,
    workers: Workers = None,
) -> None:
    """Tell what a model loses in other formats: size, weights, and with a text what it predicts.

    Windows of the text are scored as llama.cpp's perplexity tool scores them, so that the numbers can be compared with
    its own.
    """
    import qformats
    from qformats.cli.console import Bar
    from qformats.cli.export import pair
    from qformats.comparing.writing import check_place, write_text
    from qformats.errors import ConfigError

    if json == csv == _STDOUT:
        raise ConfigError("--csv", _STDOUT, "a file, since --json goes to standard output")
    files = [Path(name).expanduser() for name in (json, csv) if name not in (None, _STDOUT)]
    for file in (*files, *([html.expanduser()] if html else [])):
        check_place(file)
    with Bar() as bar:
        report = qformats.compare(
            base,
            *(models or ()),
            text=text,
            try_=try_ or (),
            quantizer=quantizer,
            quantizer_options=dict(pair("quantizer-option", each) for each in quantizer_option or ()),
            pure=pure,
            window=window,
            windows=windows,
            logits=logits,
            speed=speed,
            device=device,
            dtype=dtype,
            workers=workers,
            options=dict(pair("option", each) for each in option or ()),
            progress=bar,
        )
    for name, make in ((json, report.to_json), (csv, report.to_csv)):
        if name == _STDOUT:
            sys.stdout.write(make())
        elif name is not None:
            write_text(Path(name).expanduser(), make())
    if html is not None:
        from qformats.comparing.page import write_page

        write_page(report, html.expanduser())
    if _STDOUT not in (json, csv):
        _print(report)


def _print(report: CompareReport) -> None:
    from qformats.cli.console import console, plain

    out = console()
    everyone = (report.base, *report.models)
    _print_weights(out, everyone)
    _print_behaviour(out, report)
    _print_speed(out, everyone)
    quantized = {
        tensor.name
        for model in report.models
        if model.weights is not None
        for tensor in model.weights.by_tensor
        if tensor.quantized
    }
    for pair in report.identical:
        said = _alike(pair, quantized)
        if said:
            out.print(plain(said))
    for note in report.notes:
        out.print(plain(note))
    for model in everyone:
        for note in model.notes:
            out.print(f"{plain(model.name)}: {plain(note)}")


def _print_weights(out: Console, models: Sequence[ModelResult]) -> None:
    from qformats.cli.console import plain, size, table

    numbers = ("bytes", "bits", "of blocks", "error", "SQNR", "largest")
    rows = table("weights", "format", *numbers, right=numbers)
    for model in models:
        found = model.weights
        error = None if found is None else found.linears if found.linears.count else found.total
        rows.add_row(
            plain(model.name),
            plain(model.format),
            size(model.nbytes),
            f"{model.bits_per_weight:.2f}",
            f"{found.linear_bits_per_weight:.2f}" if found and found.linear_parameters else "",
            *(("", "", "") if error is None else _error(error.relative_rmse, error.sqnr_db, error.max_error)),
        )
    out.print(rows)
    out.print(
        "bits a weight of all tensors and of the blocks' quantized ones; of the latter, relative error and signal "
        "to noise"
    )


def _error(relative: float, sqnr: float, largest: float) -> tuple[str, str, str]:
    noise = f"{sqnr:.1f} dB" if math.isfinite(sqnr) else "exact" if sqnr > 0 else ""
    return f"{relative:.2%}", noise, f"{largest:.2g}"


def _print_behaviour(out: Console, report: CompareReport) -> None:
    from qformats.cli.console import plain, table

    if report.text is None:
        return
    numbers = ("perplexity", "over base", "mean KL", "99 % KL", "change", "same top")
    rows = table("behaviour", *numbers, right=numbers)
    for model in (report.base, *report.models):
        found = model.behaviour
        if found is None:
            continue
        cells = [_estimate(found.perplexity, ".2f")]
        if found.against is not None:
            against = found.against
            cells += [
                _estimate(against.perplexity_ratio, ".4f"),
                _estimate(against.kl.mean, ".5f" if against.kl.mean.value >= _TINY else ".1e"),
                f"{against.kl.percentiles.p99:.4f}",
                f"{against.probability.rms.value:.2%}",
                f"{against.same_top.value:.1%}",
            ]
        rows.add_row(plain(model.name), *cells)
    out.print()
    out.print(rows)
    text = report.text
    out.print(
        f"{text.scored:,} tokens scored in {text.windows} windows of {text.window_length} of {plain(text.source)}; "
        "KL in nats, change of the right token's probability as root mean square"
    )


def _estimate(found: Estimate, how: str) -> str:
    return f"{format(found.value, how)} ±{format(found.error, how)}"


def _print_speed(out: Console, models: Sequence[ModelResult]) -> None:
    from qformats.cli.console import plain, size, table

    timed = [(model.name, model.speed) for model in models if model.speed is not None]
    if not timed:
        return
    numbers = ("load", "tokens/s", "prompt tokens/s", "memory")
    rows = table("speed", "on", *numbers, right=numbers)
    for name, found in timed:
        rows.add_row(
            plain(name),
            plain(found.device),
            f"{found.load_seconds:.1f} s",
            f"{found.tokens_per_second:.1f}",
            f"{found.prompt_tokens_per_second:.0f}",
            size(found.peak_bytes),
        )
    out.print()
    out.print(rows)
    out.print("one sequence at a time; memory that loading and running added at most")


def _alike(pair: IdenticalTensors, quantized: set[str]) -> str:
    """How much two models share; nothing, if it is only what no format quantizes."""
    shared = {*pair.same_bytes, *pair.same_values}
    if not shared & quantized:
        return ""
    kinds = ((pair.same_bytes, "the same bytes"), (pair.same_values, "other bytes of the same values"))
    said = " and ".join(f"{len(names)} have {what}" for names, what in kinds if names)
    return f"{pair.first} and {pair.second}: of {pair.common} tensors {said}"
