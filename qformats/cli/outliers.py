"""``qformats outliers``: which inputs of a model's layers have outlier dimensions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qformats.cli.commands import Device, Json, LoaderOptions, Verify, opened, pairs

__all__ = ["outliers"]

_SHOWN = 6
"""Dimensions that a line of the table lists."""


def outliers(
    model: Annotated[str, typer.Argument(help="Model in any format: file, folder, hub id, or demo.")],
    text: Annotated[
        str | None,
        typer.Option(
            "--text",
            "--file",
            metavar="FILE",
            help="Text file, .jsonl file or hub data set; by default a text that comes with qformats.",
        ),
    ] = None,
    threshold: Annotated[
        float, typer.Option(metavar="X", help="Magnitude from which an activation is an outlier.")
    ] = 6.0,
    chunks: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Chunks of the text, from its beginning; all of a file by default."
        ),
    ] = None,
    chunk_size: Annotated[int, typer.Option(min=2, metavar="N", help="Tokens of a chunk.")] = 512,
    device: Device = None,
    compute_dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="What the model runs in: f32, f16 or bf16.")
    ] = "f32",
    verify: Verify = False,
    option: LoaderOptions = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Page with a picture, which needs no network."),
    ] = None,
    json: Json = None,
) -> None:
    """Find dimensions in which activations are far larger than elsewhere, and who can round them to 8 bits.

    qformats outliers ./my-model --text corpus.txt --html outliers.html

    Counted as by LLM.int8: a dimension is an outlier of a layer if an activation in it reaches the threshold. The model
    runs once over the text, block by block.
    """
    from qformats.calibration.outliers import measure_outliers
    from qformats.cli.console import Bar, console, harmless, plain, table, talk
    from qformats.cli.reporting import as_json
    from qformats.comparing.page.outliers import write_outlier_page
    from qformats.work.gpus import require_device
    from qformats.work.writing import check_place

    require_device(device)
    if html is not None:
        check_place(html)
    with Bar() as bar:
        report = measure_outliers(
            opened(model, pairs("option", option), bar),
            text or "",
            threshold=threshold,
            chunks=chunks,
            chunk_size=chunk_size,
            device=device,
            compute_dtype=compute_dtype,
            verify=verify,
            progress=bar,
        )
    if html is not None:
        write_outlier_page(report.to_dict(), html)
    if as_json(report.to_dict(), json):
        return
    if talk.quiet:
        print(harmless(report.verdict))
        return
    rows = table("input of", "dimensions", "outliers", "share", "which (share of the tokens)")
    for each in report.inputs:
        largest = sorted(each.outliers.items(), key=lambda item: -item[1])
        listed = ", ".join(f"{at} ({part:.1%})" for at, part in largest[:_SHOWN])
        more = f", {len(largest) - _SHOWN} more" if len(largest) > _SHOWN else ""
        name = plain(each.name.removesuffix(".weight"))
        rows.add_row(name, f"{each.dimensions:,}", f"{len(largest):,}", f"{each.share:.2%}", listed + more)
    out = console()
    out.print(rows)
    out.print(report.verdict)
    read = f"{report.chunks:,} chunks of {report.chunk_size:,} tokens of {plain(report.text)}"
    out.print(f"{read}; threshold {report.threshold:g}")
    if html is not None:
        out.print(f"picture: {plain(str(html))}")
