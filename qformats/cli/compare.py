"""``qformats compare``: the same model in several formats, side by side."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qformats.cli import completing
from qformats.cli.commands import Device, Json, LoaderOptions, Verify, Workers, meant, opened, pairs
from qformats.cli.comparison import NONE, counted, estimate, print_tasks
from qformats.cli.reporting import STDOUT

if TYPE_CHECKING:
    from rich.console import Console

    from qformats.comparing.report import CompareReport, IdenticalTensors, ModelResult, WeightError

__all__ = ["compare"]

_TINY = 1e-4
"""Divergences below it are written with an exponent."""
_PAIRS = 4
"""Sentences on shared tensors; the files have the others."""


def compare(
    base: Annotated[
        str, typer.Argument(help="Model to measure the others against: file, folder, hub id, or demo.")
    ],
    models: Annotated[list[str] | None, typer.Argument(help="The others, in any format.")] = None,
    text: Annotated[
        str | None,
        typer.Option(
            "--text",
            "-t",
            metavar="FILE",
            help="Text file to run the models on, or demo for the included text.",
        ),
    ] = None,
    try_: Annotated[
        list[str] | None,
        typer.Option(
            "--try",
            metavar="FORMAT",
            autocompletion=completing.formats,
            help="Quantize the base on the fly; repeatable.",
        ),
    ] = None,
    quantizer: Annotated[
        str | None,
        typer.Option(
            autocompletion=completing.quantizers,
            help="With --try: method that chooses codes, if not the format's usual one: rtn, gptq or awq.",
        ),
    ] = None,
    quantizer_option: Annotated[
        list[str] | None,
        typer.Option("--quantizer-option", "-Q", metavar="NAME=VALUE", help="An option of the quantizer."),
    ] = None,
    imatrix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE", help="With --try: importance matrix to weigh errors by; several are added up."
        ),
    ] = None,
    pure: Annotated[
        bool,
        typer.Option("--pure", help="With --try: one type for all tensors, without the container's own mix."),
    ] = False,
    window: Annotated[int, typer.Option(min=4, help="Tokens per window; the second half is scored.")] = 512,
    windows: Annotated[int | None, typer.Option(min=1, help="Most windows to run; all by default.")] = None,
    logits: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the base's predictions here for the next time.")
    ] = None,
    speed: Annotated[bool, typer.Option("--speed", help="Measure speed and memory too.")] = False,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Published tests: lambada, wikitext2, wikitext103, ptb, or any text of --text-file; with commas.",
        ),
    ] = None,
    text_file: Annotated[
        list[str] | None,
        typer.Option(
            "--text-file",
            metavar="NAME=FILE",
            help="Text of a task; otherwise it is looked for in the cache of datasets. Repeatable.",
        ),
    ] = None,
    task_window: Annotated[
        int | None,
        typer.Option(min=4, help="Tokens per window of a task; 2048, or as many as the base takes."),
    ] = None,
    task_step: Annotated[
        int | None,
        typer.Option(min=1, help="By how many tokens the next window begins later; an eighth of a window."),
    ] = None,
    task_limit: Annotated[
        int | None, typer.Option(min=1, help="Most windows, and most passages of lambada; all by default.")
    ] = None,
    device: Device = None,
    dtype: Annotated[
        str, typer.Option(metavar="TYPE", help="Dtype to compute in: f32, f16 or bf16.")
    ] = "f32",
    json: Json = None,
    csv: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write one line per model as CSV; - for standard output."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with charts that needs no network.")
    ] = None,
    verify: Verify = False,
    option: LoaderOptions = None,
    workers: Workers = None,
) -> None:
    """Report what a model loses in other formats: in size and weights, and with a text in its predictions.

    qformats compare ./my-model --try gguf:q4_0 --try nf4 --text demo --html report.html

    Windows of the text are scored as in llama.cpp's perplexity tool, so that the numbers can be compared with its own.
    """
    from qformats.work.gpus import require_device

    # Before anything that imports torch.
    require_device(device)
    import qformats
    from qformats.cli.console import Bar
    from qformats.comparing.outputs import check_outputs
    from qformats.errors import ConfigError
    from qformats.sources import check_options
    from qformats.work.writing import write_text

    if json == csv == STDOUT:
        raise ConfigError("--csv", STDOUT, "a file, since --json goes to standard output")
    outputs = {"logits": logits, "json": json, "csv": csv, "html": html}
    check_outputs(
        {kind: Path(name).expanduser() for kind, name in outputs.items() if name not in (None, STDOUT)}
    )
    chosen = pairs("quantizer-option", quantizer_option)
    require_device(chosen.get("device"), "-Q device")
    tried = [meant(format).name for format in try_ or ()]
    options = pairs("option", option)
    check_options(options)
    with Bar() as bar:
        report = qformats.compare(
            *(opened(model, options, bar) for model in (base, *(models or ()))),
            text=text,
            try_=tried,
            quantizer=quantizer,
            quantizer_options=chosen,
            pure=pure,
            imatrix=imatrix or (),
            window=window,
            windows=windows,
            logits=logits,
            speed=speed,
            tasks=[] if tasks is None else [name.strip() for name in tasks.split(",")],
            text_files=pairs("text-file", text_file),
            task_window=task_window,
            task_step=task_step,
            task_limit=task_limit,
            device=device,
            dtype=dtype,
            workers=workers,
            options=options,
            verify=verify,
            progress=bar,
        )
    for name, make in ((json, report.to_json), (csv, report.to_csv)):
        if name == STDOUT:
            sys.stdout.write(make())
        elif name is not None:
            write_text(Path(name).expanduser(), make())
    if html is not None:
        from qformats.comparing.page import write_page

        write_page(report, html.expanduser())
    if STDOUT not in (json, csv):
        _print(report)


def _print(report: CompareReport) -> None:
    from qformats.cli.console import console, plain

    out = console()
    everyone = (report.base, *report.models)
    _print_weights(out, everyone)
    _print_behaviour(out, report)
    print_tasks(out, report)
    _print_speed(out, everyone)
    for sentence in _alike(report):
        out.print(plain(sentence))
    for note in report.notes:
        out.print(plain(note))
    for model in everyone:
        for note in model.notes:
            out.print(f"{plain(model.name)}: {plain(note)}")


def _print_weights(out: Console, models: Sequence[ModelResult]) -> None:
    from qformats.cli.console import plain, size, table
    from qformats.numbers.error import percent

    numbers = ("bytes", "bits", "error", "SQNR", "largest", "block bits", "block error")
    narrow = ("largest", "format", "block bits", "SQNR", "bits", "block error")
    rows = table("weights", "format", *numbers, right=numbers, dropped=narrow)
    for model in models:
        found = model.weights
        cells = [plain(model.name), plain(model.format), size(model.nbytes), f"{model.bits_per_weight:.2f}"]
        if found is not None:
            cells += _error(found.total)
            if found.linear_parameters:
                cells += [f"{found.linear_bits_per_weight:.2f}", percent(found.linears.relative_rmse)]
        rows.add_row(*cells)
    out.print(rows)
    out.print(
        "bits per weight, relative error and signal to noise of all weights; block: of the quantized matrices of the "
        "blocks alone"
    )


def _error(error: WeightError) -> tuple[str, str, str]:
    from qformats.numbers.error import percent

    sqnr, largest = error.sqnr_db, error.max_error
    noise = "exact" if sqnr == math.inf else f"{sqnr:z.1f} dB" if math.isfinite(sqnr) else NONE
    return percent(error.relative_rmse), noise, f"{largest:.2g}" if math.isfinite(largest) else NONE


def _print_behaviour(out: Console, report: CompareReport) -> None:
    from qformats.cli.console import plain, table
    from qformats.numbers.error import percent

    if report.text is None:
        return
    numbers = ("perplexity", "over base", "mean KL", "99 % KL", "change", "same top")
    narrow = ("99 % KL", "change", "over base", "same top", "perplexity")
    rows = table("behaviour", *numbers, right=numbers, dropped=narrow)
    for model in (report.base, *report.models):
        found = model.behaviour
        if found is None:
            continue
        cells = [estimate(found.perplexity, ".2f")]
        if found.against is not None:
            against = found.against
            cells += [
                estimate(against.perplexity_ratio, ".4f"),
                estimate(against.kl.mean, ".5f" if against.kl.mean.value >= _TINY else ".1e"),
                f"{against.kl.percentiles.p99:.4f}",
                percent(against.probability.rms.value),
                f"{against.same_top.value:.1%}",
            ]
        rows.add_row(plain(model.name), *cells)
    out.print()
    out.print(rows)
    text = report.text
    out.print(
        f"{counted(text.scored, 'token')} scored in {counted(text.windows, 'window')} of {text.window_length} of "
        f"{plain(text.source)}; "
        "KL in nats; change of the right token's probability as root mean square"
    )


def _print_speed(out: Console, models: Sequence[ModelResult]) -> None:
    from qformats.cli.console import plain, size, table

    timed = [(model.name, model.speed) for model in models if model.speed is not None]
    if not timed:
        return
    numbers = ("load", "tokens/s", "prompt tokens/s", "memory")
    rows = table("speed", "on", *numbers, right=numbers, dropped=("load", "on", "prompt tokens/s"))
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
    out.print("one sequence at a time; memory is the most that loading and running added")


def _alike(report: CompareReport) -> list[str]:
    """Which models share how much of their blocks; what no format quantizes, and embeddings, do not count."""
    blocks = {
        tensor.name
        for model in report.models
        if model.weights is not None
        for tensor in model.weights.by_tensor
        if tensor.quantized and tensor.layer is not None
    }
    groups: dict[tuple[object, ...], list[IdenticalTensors]] = {}
    for pair in report.identical:
        if blocks & {*pair.same_bytes, *pair.same_values}:
            groups.setdefault((pair.common, pair.same_bytes, pair.same_values), []).append(pair)
    said = [f"{names}: {_shared(pairs[0])}" for pairs in groups.values() for names in _together(pairs)]
    if len(said) <= _PAIRS:
        return said
    return [
        *said[:_PAIRS],
        f"{len(said) - _PAIRS} more such groups of models are in the JSON report (--json).",
    ]


def _shared(pair: IdenticalTensors) -> str:
    kinds = ((pair.same_bytes, "the same bytes"), (pair.same_values, "other bytes but the same values"))
    what = " and ".join(f"{len(names)} have {kind}" for names, kind in kinds if names)
    return f"of {pair.common} tensors {what}"


def _together(pairs: Sequence[IdenticalTensors]) -> list[str]:
    """Names of models that all form such pairs with each other, in as few lists as a simple search finds."""
    left = {(pair.first, pair.second): None for pair in pairs}
    found = []
    while left:
        names = list(next(iter(left)))
        for candidate in dict.fromkeys(second for _, second in left):
            if candidate not in names and all((name, candidate) in left for name in names):
                names.append(candidate)
        for couple in itertools.combinations(names, 2):
            left.pop(couple)
        found.append(f"{', '.join(names[:-1])} and {names[-1]}")
    return found
