"""``qformats check``: whether a format, a quantizer or a container does what the framework relies on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from qformats.cli import completing
from qformats.cli.commands import Json

if TYPE_CHECKING:
    from qformats.testing import CheckResult

__all__ = ["EXIT_FAILED", "check"]

EXIT_FAILED = 1


def check(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME",
            autocompletion=completing.subjects,
            help="Format, family of formats, quantizer or container.",
        ),
    ],
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only", "-k", metavar="TEXT", help="Only checks with this in their names; repeatable."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="Model that checks export, for containers of other models than llama."
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Check that formats, quantizers and containers do what qformats relies on. Exit code 1 if one does not.

    qformats check my-format
    """
    from rich.console import Console

    from qformats.cli.console import console, plain
    from qformats.cli.reporting import as_json
    from qformats.testing.running import each_result

    _interpret_triton()
    results = []
    with Console(stderr=True, highlight=False).status("checking") as status:
        for result in each_result(names, only=only, model=model):
            results.append(result)
            status.update(f"{len(results)} checks, the last one {result.check} of {plain(result.subject)}")
    if not as_json([vars(result) for result in results], json):
        for result in results:
            if result.outcome == "failed":
                console().print(f"[red]failed[/red] {plain(result.reason)}", soft_wrap=True)
        _print(results)
    if any(result.outcome == "failed" for result in results):
        raise typer.Exit(EXIT_FAILED)


def _interpret_triton() -> None:
    """Without a GPU the kernels run in Triton's interpreter, which must be chosen before Triton is imported."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


def _print(results: Iterable[CheckResult]) -> None:
    """Counts of each subject, then why checks were skipped."""
    from qformats.cli.console import console, plain, table

    counts: dict[str, dict[str, float]] = {}
    skipped: dict[str, list[str]] = {}
    for result in results:
        label = result.subject if result.kind == "format" else f"{result.kind} {result.subject}"
        row = counts.setdefault(label, dict.fromkeys(("passed", "failed", "skipped", "seconds"), 0))
        row[result.outcome] += 1
        row["seconds"] += result.seconds
        if result.outcome == "skipped":
            skipped.setdefault(result.reason, []).append(result.check)
    numbers = ("passed", "failed", "skipped", "seconds")
    shown = table("", *numbers, right=numbers, dropped=("seconds",))
    for label, row in counts.items():
        failed = f"[red]{row['failed']:g}[/red]" if row["failed"] else "0"
        shown.add_row(
            plain(label), f"{row['passed']:g}", failed, f"{row['skipped']:g}", f"{row['seconds']:.1f}"
        )
    out = console()
    out.print(shown)
    for reason, checks in skipped.items():
        out.print(f"skipped {', '.join(dict.fromkeys(checks))}: {plain(reason)}", soft_wrap=True)
