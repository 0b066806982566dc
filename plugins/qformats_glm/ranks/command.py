"""``qformats reshard``: divide a model anew over the ranks of tensor parallelism."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qformats.cli.commands import (
    CheckExact,
    DryRun,
    Force,
    Json,
    KeepPartial,
    LoaderOptions,
    RequireExact,
    Verify,
    Workers,
    export_as_told,
    pairs,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qformats import Checkpoint

__all__ = ["reshard"]

_OPTION = "tensor-parallel"


def reshard(
    model: Annotated[str, typer.Argument(help="Folder with a file for each rank.")],
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
    tensor_parallel: Annotated[
        int,
        typer.Option("--tensor-parallel", "-p", min=1, metavar="N", help="Ranks to divide the model over."),
    ],
    format: Annotated[
        str | None, typer.Option("--format", "-f", help="Format; by default every tensor keeps its own.")
    ] = None,
    option: LoaderOptions = None,
    force: Force = False,
    dry_run: DryRun = False,
    check_exact: CheckExact = False,
    require_exact: RequireExact = False,
    keep_partial: KeepPartial = False,
    verify: Verify = False,
    workers: Workers = None,
    json: Json = None,
) -> None:
    """Divide a plain or quantized model over another number of tensor-parallel ranks.

    qformats reshard ./glm-130b ./glm-130b-4 --tensor-parallel 4

    Plain numbers are copied, and so are quantized ones if one scale serves all of a row that a rank then holds. The
    rest is quantized again, and the report says which tensors those are.
    """
    import qformats
    from qformats.errors import ConfigError
    from qformats_glm.ranks import RankFolder

    options = pairs("option", option)
    source = qformats.open(model, options=options)
    if source.container != RankFolder.name:
        allowed = f"a container that is divided over ranks: {RankFolder.name}"
        raise ConfigError(f"{source.path}: container", source.container, allowed)
    options[_OPTION] = str(tensor_parallel)
    rules: tuple[tuple[str, str], ...] = ()
    if format is None:
        format, rules = _formats(source, options)
    export_as_told(
        source,
        output,
        format=format,
        tensor_types=rules,
        container=source.container,
        options=options,
        force=force,
        dry_run=dry_run,
        check_exact=check_exact,
        require_exact=require_exact,
        keep_partial=keep_partial,
        verify=verify,
        workers=workers,
        json=json,
    )


def _formats(source: Checkpoint, options: Mapping[str, str]) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The format of most weights, and rules for the tensors that are in another one."""
    import re
    from collections import Counter

    from qformats.errors import ConfigError
    from qformats_glm.ranks import RankFolder

    loader = RankFolder()
    weights: Counter[str] = Counter()
    where: dict[str, str] = {}
    for draft in loader.draft(source, loader.own_options(options)):
        packer = draft.source.stored_packer
        if draft.keep is None and packer.writable:
            weights[packer.name] += draft.source.numel
            where[draft.source.name] = packer.name
    if not weights:
        raise ConfigError("--format", None, "a format, since none of the model's own can be written")
    default = weights.most_common(1)[0][0]
    rules = [(f"^{re.escape(name)}$", format) for name, format in where.items() if format != default]
    return default, tuple(rules)
