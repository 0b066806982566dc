"""``qformats inspect``: describe a model on disk."""

from __future__ import annotations

from collections import Counter
from json import dumps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qformats.cli import completing
from qformats.cli.check import EXIT_FAILED
from qformats.cli.commands import Json, LoaderOptions, meant, opened, pairs

if TYPE_CHECKING:
    from qformats.cli.tables import Table
    from qformats.exporting.footprint import Footprint
    from qformats.interfaces.checkpoint import Checkpoint
    from qformats.interfaces.packer import Packer

__all__ = ["inspect"]

_UNKNOWN = "whole numbers in a format that the model does not name, so they are not counted as weights"
_SHOWN_ITEMS = 8
"""How many elements of a list the table shows."""
_SHOWN = 160
"""How many characters of a metadata value the table shows."""


def inspect(
    model: Annotated[str, typer.Argument(help="File or folder, a hub id (organisation/name), or demo.")],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    plan: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT",
            autocompletion=completing.formats,
            help="Predict bytes and memory in this format instead; config.json is enough.",
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(min=1, help="With --plan: tokens in the cache; by default the model's context."),
    ] = None,
    pure: Annotated[
        bool,
        typer.Option(
            "--pure", help="With --plan: one type for all tensors, without the container's own mix."
        ),
    ] = False,
    container: Annotated[
        str | None,
        typer.Option(
            autocompletion=completing.containers,
            help="With --plan: container, if not the format's usual one.",
        ),
    ] = None,
    program: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="PROGRAM",
            help="With --plan: refuse what vllm, llama.cpp, transformers or mlx does not load of it.",
        ),
    ] = None,
    fits: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="With --plan: whether it runs in this much memory (6GB, 24GiB); exit code 1 if it does not.",
        ),
    ] = None,
    ranks: Annotated[
        int | None,
        typer.Option(
            min=1, help="With --plan: devices of tensor parallelism, each with its part of the model."
        ),
    ] = None,
    option: LoaderOptions = None,
    json: Json = None,
) -> None:
    """Show a model's architecture, size, bits per weight, tensor types and metadata.

    qformats inspect my-model.gguf

    With --plan, predict its size in a format and the memory it takes to run, on one device or on each of several.

    qformats inspect my-model --plan q4_0 --fits 6GB --context 8192
    """
    from qformats.cli.console import Bar
    from qformats.cli.reporting import as_json
    from qformats.errors import ConfigError

    options = pairs("option", option)
    if plan is not None:
        from qformats.exporting import Recipe
        from qformats.exporting.footprint import footprint
        from qformats.interfaces import size
        from qformats.sources import outline_model

        limit = size({"--fits": fits}, "--fits", "1GB") if fits is not None else None
        packer = meant(plan)
        if ranks is not None:
            container, options = _divided(packer, container, ranks, options)
        recipe = Recipe(packer.name, pure=pure, container=container, program=program or "")
        with Bar() as bar:
            bar.start(f"planning {model} in {recipe.format}")
            predicted = footprint(outline_model(model, options), recipe, options, context=context)
        needed = None if predicted.running is None else predicted.running + predicted.runtime
        answer = {"limit": limit, "needed": needed, "fits": needed is not None and needed <= (limit or 0)}
        if not as_json(predicted.to_dict() | ({} if limit is None else answer), json):
            _print_footprint(predicted, tensors)
            if limit is not None and needed is not None:
                _print_answer(needed, limit, len(predicted.ranks))
        if limit is not None and not answer["fits"]:
            raise typer.Exit(EXIT_FAILED)
        return
    only = {
        "--context": context,
        "--pure": pure or None,
        "--container": container,
        "--fits": fits,
        "--for": program,
    }
    for name, value in {**only, "--ranks": ranks}.items():
        if value is not None:
            raise ConfigError(name, value, "--plan with this option")
    with Bar() as bar:
        found = opened(model, options, bar)
    if not (json and as_json(_facts(found), json)):
        _print(found, tensors)


def _divided(
    packer: Packer, container: str | None, ranks: int, options: dict[str, str]
) -> tuple[str, dict[str, str]]:
    """Container and options for a model that is divided over devices."""
    from qformats.errors import ConfigError
    from qformats.exporting.footprint import RANKS
    from qformats.registry import registry

    able = [
        loader.name
        for loader in registry().loaders()
        if loader.accepts(packer) and RANKS in {option.name for option in loader.options}
    ]
    if not able or (container is not None and container not in able):
        expected = (
            f"a container that divides models: {', '.join(able)}" if able else "a format that can be divided"
        )
        raise ConfigError("--ranks", container or packer.name, expected)
    if options.get(RANKS, str(ranks)) != str(ranks):
        raise ConfigError("--ranks", ranks, f"{options[RANKS]}, as -O {RANKS} says")
    return container or able[0], options | {RANKS: str(ranks)}


def _types(model: Checkpoint) -> list[dict[str, Any]]:
    counts = Counter(t.stored_format for t in model.tensors.values())
    integers = model.integers
    return [
        {
            "format": name,
            "tensors": count,
            "weights": sum(
                t.numel for n, t in model.tensors.items() if t.stored_format == name and n not in integers
            ),
            "nbytes": sum(t.nbytes for t in model.tensors.values() if t.stored_format == name),
        }
        for name, count in counts.most_common()
    ]


def _packed_words(model: Checkpoint) -> list[str]:
    """Matrices of whole numbers in linear layers: packed in a way that nothing in the model describes."""
    return [
        name
        for name, dtype in model.integers.items()
        if dtype in ("i32", "i16", "i8", "u8") and len(model.tensors[name].shape) > 1
    ]


def _facts(model: Checkpoint) -> dict[str, Any]:
    return {
        "path": str(model.path),
        "name": model.name,
        "container": model.container,
        "architecture": model.architecture,
        "parameters": model.parameters,
        "tensor_nbytes": model.nbytes,
        "file_nbytes": sum(file.stat().st_size for file in model.files),
        "bits_per_weight": None if _packed_words(model) else model.bits_per_weight,
        "packed_words": _packed_words(model),
        "files": [str(file) for file in model.files],
        "types": _types(model),
        "notes": list(model.notes),
        "metadata": dict(model.metadata),
        "tensors": [
            {"name": t.name, "shape": list(t.shape), "format": t.stored_format, "nbytes": t.nbytes}
            for t in model.tensors.values()
        ],
    }


def _print(model: Checkpoint, tensors: bool) -> None:
    from qformats.cli.console import console, plain, size, table

    out = console()
    files = model.files
    on_disk = sum(file.stat().st_size for file in files)
    out.print(f"[bold]{plain(model.path)}[/bold]", soft_wrap=True)
    head = table("", "")
    head.add_row("container", model.container)
    head.add_row("architecture", plain(model.architecture))
    head.add_row("weights", f"{model.parameters:,} in {len(model.tensors)} tensors")
    count = "1 file" if len(files) == 1 else f"{len(files)} files"
    head.add_row("bytes", f"{model.nbytes:,} of tensors; {on_disk:,} ({size(on_disk)}) in {count}")
    packed = _packed_words(model)
    if packed:
        names = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in packed))
        nbytes = sum(model.tensors[name].nbytes for name in packed)
        told = f"{size(nbytes)} in {len(packed)} tensors ({names}): {_UNKNOWN}"
        head.add_row("packed words", plain(told))
    elif model.parameters:
        head.add_row("bits per weight", f"{model.bits_per_weight:.3f}")
    out.print(head)
    for note in model.notes:
        out.print(plain(note))
    if model.tensors:
        out.print()
        out.print(_type_table(model))
    out.print()
    facts = table("metadata", "")
    for key, value in model.metadata.items():
        text = _text(value)
        facts.add_row(plain(key), plain(text if len(text) <= _SHOWN else text[:_SHOWN] + " ..."))
    out.print(facts)
    if tensors:
        out.print()
        rows = table("tensor", "shape", "type", "bytes", right=("shape", "bytes"), dropped=("bytes", "shape"))
        for t in model.tensors.values():
            rows.add_row(
                plain(t.name), "x".join(map(str, t.shape)) or "scalar", t.stored_format, f"{t.nbytes:,}"
            )
        out.print(rows)


def _print_footprint(found: Footprint, tensors: bool) -> None:
    from qformats.cli.console import console, plain, size, table
    from qformats.cli.summary import print_left_out

    out = console()
    out.print(f"[bold]{found.format}[/bold]  {plain(found.architecture)}, {found.parameters:,} weights")
    out.print()
    stored = table("stored", "tensors", "bytes", right=("tensors", "bytes"))
    for kind, count in found.types.items():
        nbytes = sum(n for _, format, n in found.tensors if format == kind)
        stored.add_row(kind, f"{count:,}", f"{nbytes:,}")
    stored.add_row("all tensors", f"{len(found.tensors):,}", f"{found.nbytes:,}")
    out.print(stored)
    out.print(f"{size(found.nbytes)}, {found.bits_per_weight:.3f} bits per weight")
    out.print()
    if found.context is None or found.chunk is None or found.running is None:
        out.print(f"The memory to run it is not known: {plain(found.unknown)}")
    else:
        _print_running(found, found.context, found.chunk, found.running)
    print_left_out(out, found.left_out, every=True)
    for note in found.notes:
        out.print(plain(note))
    if tensors:
        out.print()
        rows = table("tensor", "type", "bytes", right=("bytes",))
        for name, format, nbytes in found.tensors:
            rows.add_row(plain(name), format, f"{nbytes:,}")
        out.print(rows)


def _print_running(found: Footprint, context: int, chunk: int, running: int) -> None:
    from qformats.cli.console import console, size, table

    count = len(found.ranks)
    run = table("running" if count == 1 else f"running on each of {count}", "bytes", "", right=("bytes",))
    run.add_row("weights", f"{max(found.ranks):,}", "" if count == 1 else "of the device that holds most")
    run.add_row("cache", f"{found.cache:,}", f"{context:,} tokens in 16 bits")
    run.add_row("largest matrix", f"{found.decoded:,}", "decoded to 16 bits, if the runtime does so")
    run.add_row("activations", f"{found.activations:,}", f"{chunk:,} tokens at a time, and the logits")
    run.add_row("together", f"{running:,}", f"{size(running)}, without the runtime's own")
    console().print(run)


def _print_answer(needed: int, limit: int, devices: int) -> None:
    from qformats.cli.console import console, size
    from qformats.exporting.footprint import RUNTIME

    each = "" if devices == 1 else " on each device"
    sum_of = f"{size(needed)} of {size(limit)}{each}, with about {size(RUNTIME)} for CUDA and torch"
    console().print(
        f"Yes, it fits: {sum_of}" if needed <= limit else f"No, it does not fit: {sum_of}", soft_wrap=True
    )


def _type_table(model: Checkpoint) -> Table:
    from qformats.cli.console import table

    kinds = table(
        *("type", "tensors", "weights", "bytes", "share"),
        right=("tensors", "weights", "bytes", "share"),
        dropped=("weights", "tensors"),
    )
    for kind in _types(model):
        numbers = (f"{kind[key]:,}" for key in ("tensors", "weights", "nbytes"))
        kinds.add_row(kind["format"], *numbers, f"{kind['nbytes'] / max(1, model.nbytes):.1%}")
    return kinds


def _text(value: Any) -> str:
    """A value as JSON writes it, but strings without quotes and long lists cut."""
    if isinstance(value, list) and len(value) > _SHOWN_ITEMS:
        value = [*value[:_SHOWN_ITEMS], f"... {len(value) - _SHOWN_ITEMS} more"]
    return value if isinstance(value, str) else dumps(value, ensure_ascii=False, default=str)
