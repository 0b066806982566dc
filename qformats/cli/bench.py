"""``qformats bench``: how fast models run here, beside what the memory allows."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from qformats.cli import completing
from qformats.cli.commands import ComputeDtype, Device, Json, LoaderOptions, Verify, meant, opened, pairs

if TYPE_CHECKING:
    from qformats.comparing.bench import BenchResult

__all__ = ["bench"]


def bench(
    models: Annotated[
        list[str],
        typer.Argument(help="Models in any format: file, folder, hub id, or demo.", metavar="MODEL"),
    ],
    format: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            "-f",
            autocompletion=completing.formats,
            help="Quantize each model into this format while loading; repeatable.",
        ),
    ] = None,
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", "-p", min=1, help="Tokens of the prompt that is read.")
    ] = 512,
    new_tokens: Annotated[
        int, typer.Option("--new-tokens", "-n", min=1, help="Tokens that are generated.")
    ] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Runs, of which the fastest counts.")] = 3,
    device: Device = None,
    dtype: ComputeDtype = None,
    verify: Verify = False,
    option: LoaderOptions = None,
    json: Json = None,
) -> None:
    """Time models on this machine, one after the other: loading, reading a prompt, generating, memory.

    qformats bench my-model my-model-Q4_K_M.gguf

    The last column is the share of what the memory allows: a token cannot come faster than its weights are read, which
    is taken to be as fast as a copy.
    """
    from qformats.cli.console import Bar
    from qformats.cli.reporting import as_json
    from qformats.errors import ConfigError
    from qformats.folder.readiness import require_class, require_weights
    from qformats.registry import registry
    from qformats.work.gpus import require_device

    if dtype not in (None, "f32", "f16", "bf16"):
        raise ConfigError("--dtype", dtype, "f32, f16 or bf16")
    require_device(device)
    formats = [registry().writable(meant(name).name).name for name in format or ()]
    options = pairs("option", option)
    with Bar() as bar:
        sources = [opened(model, options, bar) for model in models]
        for source in sources:
            require_weights(source)
            require_class(source, "run")
        bar.start("loading torch")
        import torch

        from qformats.comparing.bench import bench as run
        from qformats.comparing.speed import machine
        from qformats.numbers.dtypes import torch_dtype
        from qformats.work.device import chosen_device

        found = run(
            sources,
            formats=formats,
            device=chosen_device(device),
            dtype=None if dtype is None else torch_dtype(dtype),
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            repeats=repeats,
            options=options,
            verify=verify,
            progress=bar,
        )
        about = machine(torch.get_num_threads())
    results = [
        {
            **dataclasses.asdict(result),
            "speed": {
                **dataclasses.asdict(result.speed),
                "most_tokens_per_second": result.speed.most_tokens_per_second,
            },
        }
        for result in found
    ]
    settings = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "repeats": repeats}
    if as_json({"results": results, **settings, "machine": about}, json):
        return
    _print(found, about, prompt_tokens, new_tokens)


def _print(found: list[BenchResult], about: dict[str, str], prompt_tokens: int, new_tokens: int) -> None:
    from qformats.cli.console import console, plain, size, table

    numbers = ("weights", "load", "prompt tokens/s", "tokens/s", "memory", "of most")
    rows = table("model", "format", *numbers, right=numbers, dropped=("load", "weights", "memory"))
    for result in found:
        speed = result.speed
        most = speed.most_tokens_per_second
        rows.add_row(
            plain(result.model),
            plain(result.format),
            size(result.nbytes),
            f"{speed.load_seconds:.1f} s",
            f"{speed.prompt_tokens_per_second:.0f}",
            f"{speed.tokens_per_second:.1f}",
            size(speed.peak_bytes),
            f"{100 * speed.tokens_per_second / most:.0f} %" if most else "",
        )
    out = console()
    out.print(rows)
    speed = found[0].speed
    where = speed.device if speed.device != "cpu" else f"{about['cpu']}, {about['threads']} threads"
    out.print(
        f"{plain(where)}; {prompt_tokens} tokens read, {new_tokens} generated, one sequence at a time; memory is the "
        "most that loading and running added; most is what reading the weights allows at "
        f"{speed.copied_per_second / 1e9:.0f} GB/s, the speed of a copy"
    )
