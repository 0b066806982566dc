"""``qformats imatrix``: how much each input of a model's weights matters, measured on a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qformats.cli.commands import Device, Force, Json, LoaderOptions, Verify, opened, pairs

__all__ = ["imatrix"]


def imatrix(
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: a name that ends in .gguf.")],
    model: Annotated[
        str | None,
        typer.Argument(
            help="Model in any format: file, folder, hub id, or demo. Without one, --in-file is only added up."
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            "--text",
            "--file",
            metavar="FILE",
            help="Text file, .jsonl file or hub data set; by default a text that comes with qformats.",
        ),
    ] = None,
    chunks: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Chunks of the text, from its beginning; all of a file by default."
        ),
    ] = None,
    chunk_size: Annotated[int, typer.Option(min=2, metavar="N", help="Tokens of a chunk.")] = 512,
    in_file: Annotated[
        list[str] | None,
        typer.Option(
            "--in-file", "--merge", metavar="FILE", help="Importance matrix to add to the result; repeatable."
        ),
    ] = None,
    device: Device = None,
    compute_dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="What the model runs in: f32, f16 or bf16.")
    ] = "f32",
    verify: Verify = False,
    option: LoaderOptions = None,
    force: Force = False,
    json: Json = None,
) -> None:
    """Measure an importance matrix, as llama-quantize and other programs quantize by.

    qformats imatrix ./my-model --text corpus.txt -o imatrix.gguf

    The model runs once over the text, block by block. The file is one of llama.cpp's, and equal to what llama-imatrix
    measures on the same tokens. Several files are added up with --in-file.
    """
    import time

    import qformats
    from qformats.cli.console import Bar, console, harmless, plain, table, talk
    from qformats.cli.reporting import as_json
    from qformats.errors import ConfigError
    from qformats.work.gpus import require_device

    if model is None and not in_file:
        raise ConfigError("MODEL", None, "a model to measure, or --in-file with files to add up")
    require_device(device)
    began = time.perf_counter()
    with Bar() as bar:
        source = None if model is None else opened(model, pairs("option", option), bar)
        result = qformats.imatrix(
            source,
            output,
            text=text,
            chunks=chunks,
            chunk_size=chunk_size,
            in_files=in_file or (),
            device=device,
            compute_dtype=compute_dtype,
            force=force,
            verify=verify,
            progress=bar,
        )
    target = str(output.expanduser())
    seconds = time.perf_counter() - began
    if as_json(
        {"target": target, **result.provenance, "unreached": result.unreached, "seconds": seconds}, json
    ):
        return
    if talk.quiet:
        print(harmless(target))
        return
    rows = table("", "")
    rows.add_row("entries", f"{result.entries}")
    if result.chunks:
        size = f" of {result.chunk_size:,} tokens" if result.chunk_size else ""
        rows.add_row("chunks", f"{result.chunks:,}{size}")
    rows.add_row("text", plain(", ".join(result.datasets)) or "not told")
    rows.add_row("time", f"{seconds:.1f} s")
    out = console()
    out.print(f"[bold]{plain(target)}[/bold]  importance matrix")
    out.print(rows)
    if result.unreached:
        out.print(
            f"{result.unreached:,} matrices of experts were reached by no token; a longer text may reach them"
        )
