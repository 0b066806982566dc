"""``qformats export --recipe``: run the export of a record again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["export_again"]


def export_again(
    recipe: Path,
    model: str | None,
    output: Path | None,
    *,
    beside: Mapping[str, object],
    imatrix: Sequence[str],
    quantizer_options: Mapping[str, str],
    force: bool,
    dry_run: bool,
    keep_partial: bool,
    workers: int | None,
    engine: str,
    address: str | None,
    json: str | None,
) -> None:
    """Run it and print the result, as an export does.

    Parameters
    ----------
    recipe : Path
        The record, or the folder or file that it belongs to.
    model : str or None
        What the user names; by default the record's own source, where it can be found.
    output : Path or None
        File or folder to write; by default it is named after the model and the format.
    beside : mapping of str to object
        Options that a recipe has already, and their values: none may be set.
    imatrix, quantizer_options
        Places of files that the recipe names.
    force, dry_run, keep_partial, workers, engine, address, json
        The shared options of exports.

    Raises
    ------
    ConfigError
        If an option is set that the recipe has.
    """
    from qformats.cli.commands import KEPT, opened
    from qformats.cli.console import Bar
    from qformats.cli.summary import print_report
    from qformats.errors import ConfigError
    from qformats.exporting import make_plan
    from qformats.exporting.again import again_from
    from qformats.exporting.engines.named import named, require_known
    from qformats.exporting.report import report_of
    from qformats.exporting.rerun import rerun
    from qformats.registry import registry
    from qformats.work.pool import threads

    for name, value in beside.items():
        if value:
            shown = ", ".join(map(str, value)) if isinstance(value, list | dict) else str(value)
            raise ConfigError(f"--{name}", shown, "no such option beside --recipe, which has it already")
    require_known(engine, address)
    again = again_from(recipe).with_files(imatrix, quantizer_options)
    try:
        with Bar() as bar:
            source = again.source(None) if model is None else opened(model, again.options, bar)
            packer = registry().writable(again.recipe.format)
            suffix = again.recipe.loader(source).suffix
            usual = Path(f"{source.name}-{packer.spec.variant}{suffix}")
            target = output.expanduser() if output else usual
            if dry_run:
                again.require_source(source, threads(workers), bar)
                report = report_of(make_plan(source, target, again.recipe, again.options))
            else:
                with named(engine, address) as chosen:
                    report = rerun(
                        again,
                        source,
                        target,
                        force=force,
                        workers=workers,
                        keep_partial=keep_partial,
                        engine=chosen,
                        progress=bar,
                    )
    except KeyboardInterrupt:
        if dry_run or not keep_partial:
            raise
        raise KeyboardInterrupt(KEPT) from None
    print_report(report, json, planned=dry_run)
