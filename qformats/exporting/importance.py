"""Importance matrices in files: read, added up, given a model's names, and written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from qformats.errors import CheckpointError, ConfigError, OutputError, spelled
from qformats.interfaces.checkpoint import Checkpoint
from qformats.interfaces.importance import Importance
from qformats.interfaces.loader import Loader
from qformats.registry import registry
from qformats.work.writing import check_place, write_bytes

__all__ = ["importance_writer", "read_importance", "write_importance"]


def read_importance(files: Iterable[str | Path], source: Checkpoint | None) -> Importance:
    """Importance matrix of one or more files, added up.

    Parameters
    ----------
    files : iterable of path
        One or more.
    source : Checkpoint or None
        The model whose names the result has; without one it has those of the files.

    Raises
    ------
    CheckpointError
        If a file cannot be read, is not an importance matrix, or belongs to a model with other tensors.
    ConfigError
        If the files belong to different models.
    """
    found: dict[str, Importance] = {}
    paths = [Path(file).expanduser() for file in files]
    for path in paths:
        loader, read = _read(path)
        found[loader.name] = found[loader.name].plus(read) if loader.name in found else read
    total: Importance | None = None
    for name, importance in found.items():
        if source is not None:
            importance = importance.under(registry().loader(name).name_importance(importance, source))
        both = importance if total is None else total.plus(importance)
        total = replace(both, entries=importance.entries + (0 if total is None else total.entries))
    if total is None:
        raise ConfigError("imatrix", 0, "one file or more")
    if source is not None and not total.sums:
        expected = f"an importance matrix of {source.path}"
        raise CheckpointError(paths[0], "has no entry for any tensor of the model", expected)
    return total


def _read(path: Path) -> tuple[Loader, Importance]:
    expected = "an importance matrix"
    hint = "Give a file that llama-imatrix or qformats imatrix has written"
    try:
        if not path.is_file():
            found = "is not a file" if path.exists() else "no such file"
            raise CheckpointError(path, found, expected, hint=hint)
        for loader in registry().loaders():
            importance = loader.read_importance(path)
            if importance is not None:
                return loader, importance
    except OSError as error:
        raise CheckpointError(path, f"cannot be read ({error.strerror or error})", expected) from error
    raise CheckpointError(path, "is a file of another kind", expected, hint=hint)


def importance_writer(target: Path, force: bool) -> Loader:
    """Loader that writes an importance matrix under this name; refuses a name before the work is done.

    Raises
    ------
    ConfigError
        If no loader writes files with such names.
    OutputError
        If there is something already, or the place cannot be written.
    """
    able = [loader for loader in registry().loaders() if loader.writes_importance]
    chosen = next((loader for loader in able if loader.suffix == target.suffix), None)
    if chosen is None:
        names = " or ".join(loader.suffix for loader in able)
        raise ConfigError("output", str(target), f"a name that ends in {names}")
    check_place(target)
    if target.exists() and not force:
        hint = "Choose another name, or replace it with " + spelled("--force", "force=True")
        raise OutputError(target, "exists already", hint)
    return chosen


def write_importance(
    importance: Importance, target: Path, source: Checkpoint | None, *, force: bool = False
) -> None:
    """Write an importance matrix, all of it or nothing.

    Parameters
    ----------
    importance : Importance
        Under the names of `source`; without one, under those of its files.
    target : Path
        File to write.
    source : Checkpoint or None
        The model that it belongs to.
    force : bool
        Replace an existing file.

    Raises
    ------
    ConfigError, OutputError
        See :func:`importance_writer`.
    """
    loader = importance_writer(target, force)
    write_bytes(target, loader.importance_file(importance, source))
