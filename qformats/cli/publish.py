"""An export to several formats at once: a folder to be published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qformats.interfaces import Checkpoint
    from qformats.publishing import PublishReport

__all__ = ["publish_as_told"]


def publish_as_told(
    source: Checkpoint,
    output: Path | None,
    *,
    formats: Sequence[str],
    text: str | None,
    window: int | None,
    windows: int | None,
    base_model: str | None,
    quantizer: str | None,
    quantizer_options: Mapping[str, str],
    imatrix: Sequence[str],
    tensor_types: Sequence[tuple[str, str]],
    output_type: str | None,
    token_embedding_type: str | None,
    pure: bool,
    container: str | None,
    program: str | None,
    options: Mapping[str, str],
    force: bool,
    dry_run: bool,
    check_exact: bool,
    require_exact: bool,
    keep_partial: bool,
    verify: bool,
    workers: int | None,
    json: str | None,
) -> None:
    """Publish a model, or show the plan of it, and print the result.

    Parameters
    ----------
    source : Checkpoint
        The model.
    output : Path or None
        Folder to write; by default it is named after the model.
    formats : sequence of str
        Full names.
    text, window, windows, base_model
        See :func:`qformats.publish`.
    quantizer, quantizer_options, imatrix, tensor_types, output_type, token_embedding_type, pure, container, program
        See :func:`qformats.export`.
    options
        See :func:`qformats.export`.
    force, dry_run, check_exact, require_exact, keep_partial, verify, workers, json
        The shared options of exports.
    """
    from dataclasses import replace

    from qformats.cli.commands import KEPT
    from qformats.cli.console import Bar, harmless, talk
    from qformats.cli.reporting import as_json
    from qformats.exporting import Recipe
    from qformats.exporting.check import check_exact as check
    from qformats.exporting.check import require_exact as refuse_inexact
    from qformats.exporting.recipe import with_options
    from qformats.exporting.recorded import require_unchanged
    from qformats.exporting.report import answered
    from qformats.publishing import Settings, plan_all, planned, publish
    from qformats.registry import registry
    from qformats.work.pool import threads

    recipes = [
        Recipe(
            registry().writable(format).name,
            quantizer=quantizer or "",
            imatrix=tuple(imatrix),
            tensor_types=tuple(tensor_types),
            output_type=output_type,
            token_embedding_type=token_embedding_type,
            pure=pure,
            container=container,
            program=program or "",
        )
        for format in formats
    ]
    folder = output.expanduser() if output else Path(f"{source.name}-quantized")
    settings = Settings(
        base_model=base_model or "",
        text=text,
        window=512 if window is None else window,
        windows=windows,
        options=options,
        workers=workers,
        force=force,
        keep_partial=keep_partial,
        verify=verify,
        require_exact=require_exact,
    )
    dry = dry_run or check_exact
    with Bar() as bar:
        bar.start("planning")
        plans = plan_all(source, folder, with_options(recipes, quantizer_options), options)
        if dry:
            report = planned(source, plans, settings)
            if check_exact or require_exact:
                require_unchanged(source, verify=verify, progress=bar)
            reasons = (
                [check(plan, threads(workers), bar) for plan in plans] if check_exact else [None] * len(plans)
            )
            for plan, found in zip(plans, reasons, strict=True) if require_exact else ():
                refuse_inexact(plan, threads(workers), bar, found)
            outputs = (
                each if found is None else replace(each, report=answered(each.report, found))
                for each, found in zip(report.outputs, reasons, strict=True)
            )
            report = replace(report, outputs=tuple(outputs))
        else:
            try:
                report = publish(source, plans, settings, bar)
            except KeyboardInterrupt as error:
                if error.args or not keep_partial:
                    raise
                raise KeyboardInterrupt(KEPT) from None
    if as_json(report.to_dict(), json):
        return
    if talk.quiet:
        print(harmless(report.folder))
    else:
        _print(report, planned=dry)


def _print(report: PublishReport, planned: bool) -> None:
    from qformats.cli.console import console, plain, size, table
    from qformats.cli.summary import print_details
    from qformats.publishing.card import divergence

    out = console()
    measured = report.text is not None
    heads = ("file", "format", "bytes", "bits", *(("mean KL", "same top") if measured else ()))
    rows = table(*heads, right=heads[2:], dropped=("same top", "bits", "format"))
    for output in report.outputs:
        made = output.report
        cells = [plain(output.name), made.format, size(made.file_nbytes), f"{made.bits_per_weight:.2f}"]
        if measured:
            same = "-" if output.same_top is None else f"{output.same_top.value:.1%}"
            cells += [divergence(output.mean_kl), same]
        rows.add_row(*cells)
    out.print(rows)
    for output in report.outputs:
        out.print()
        print_details(output.report, output.name, planned=planned)
        for note in output.notes:
            out.print(f"its divergence is not known: {plain(note)}")
    out.print()
    for note in report.notes:
        out.print(plain(note))
    total = f"{report.nbytes:,} bytes ({size(report.nbytes)})"
    if planned:
        out.print(
            f"Nothing was written. {plain(report.folder)} would take {total} in {_counted(len(report.outputs))}."
        )
        return
    out.print(
        f"{plain(report.folder)}: {_counted(len(report.outputs))}, {total}, in {report.seconds:.1f} s; with "
        f"{report.card} (the model card) and {report.checksums} (sha256sum -c {report.checksums})"
    )


def _counted(formats: int) -> str:
    return f"{formats} format{'s' if formats > 1 else ''}"
