"""Which of a folder's files hold its weights: those that Transformers would load, in its order of precedence.

Source: ``_get_resolved_checkpoint_files`` and ``_load_pretrained_model`` in
transformers:src/transformers/modeling_utils.py, version 5.23.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from qformats.errors import CheckpointError, shown
from qformats.folder.adapter import refuse_adapter
from qformats.folder.archive import INTERRUPTED
from qformats.work.files import is_text, json_kind, parse_json, refuse_link_out

__all__ = ["WeightFiles", "find_weights", "has_weights"]

_STANDARD = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""What Transformers looks for; the first that is there is read."""
_EXPLICIT = "transformers_weights"
"""Key of config.json that names the file to read instead."""
_INDEX = ".index.json"
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.safetensors.index.json", "*.bin.index.json")
_NO_WEIGHTS = (
    "adapter_*",
    "training_args.bin",
    "optimizer*",
    "scheduler*",
    "rng_state*",
    "scaler.pt",
    "*_states.pt",
)
"""Adapters and what training leaves behind."""
_LONGEST_NAME = 255
_SHOWN = 3


@dataclass(frozen=True)
class WeightFiles:
    """Weight files of a folder.

    Attributes
    ----------
    files : list of Path
        Those that are read, in order: of a tensor that is in several, the last one counts.
    index : dict of str to str or None
        File of each tensor, if there is an index. Only its file names decide what is read.
    notes : tuple of str
        What is there and not read.
    """

    files: list[Path]
    index: dict[str, str] | None
    notes: tuple[str, ...]


def find_weights(folder: Path, config: Mapping[str, Any]) -> WeightFiles:
    """Find the files that hold a folder's weights.

    Parameters
    ----------
    folder : Path
        The model.
    config : mapping
        Its config.json, which may name the file.

    Raises
    ------
    CheckpointError
        If there are none, one that is named is missing, or one is a link that leads out of the folder.

    Examples
    --------
    >>> import qformats
    >>> from qformats.folder.resolve import find_weights
    >>> [file.name for file in find_weights(qformats.open("demo").path, {}).files]
    ['model.safetensors']
    """
    first = _first(folder, config)
    refuse_link_out(first, folder)
    index = None
    files = [first]
    if first.name.endswith(_INDEX):
        index = _read_index(first)
        # Not beside the index: Transformers looks for them in the model's folder.
        files = [folder / name for name in sorted(set(index.values()))]
        for file in files:
            refuse_link_out(file, folder)
        missing = [file for file in files if not file.is_file()]
        if missing:
            raise CheckpointError(
                missing[0],
                f"is missing ({len(missing)} of the {len(files)} files that {first.name} names)",
                hint="fetch the missing files, or use a complete folder",
            )
    return WeightFiles(files, index, _ignored(folder, first, files))


def has_weights(folder: Path) -> bool:
    """Whether there are any files of weights, of whatever name.

    Examples
    --------
    >>> import qformats
    >>> from qformats.folder.resolve import has_weights
    >>> has_weights(qformats.open("demo").path)
    True
    """
    found = (file.name for pattern in _WEIGHTS for file in folder.glob(pattern))
    return any(not _is_no_weights(name) for name in found)


def _first(folder: Path, config: Mapping[str, Any]) -> Path:
    """The file of weights, or the index, that decides."""
    named = config.get(_EXPLICIT)
    if named is not None:
        return _explicit(folder, named)
    for name in _STANDARD:
        if (folder / name).is_file():
            return folder / name
    # Transformers would find nothing; where only one is possible, there is no doubt about it.
    for pattern in ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt"):
        others = [file for file in sorted(folder.glob(pattern)) if not _is_no_weights(file.name)]
        if len(others) == 1:
            return others[0]
        if others and not list(folder.glob(f"{pattern}{_INDEX}")):
            suffix = pattern.removeprefix("*.")
            raise CheckpointError(
                folder, f"{len(others)} {suffix} files without an index", ", ".join(_STANDARD)
            )
    refuse_adapter(folder)
    raise CheckpointError(folder, "no weights", ", ".join(_STANDARD[:-1]) + f" or {_STANDARD[-1]}")


def _explicit(folder: Path, named: object) -> Path:
    """The file that config.json names."""
    config = folder / "config.json"
    if not isinstance(named, str) or not named.endswith((".safetensors", ".safetensors.index.json")):
        expected = "the name of a .safetensors file or of its index"
        raise CheckpointError(config, f"{_EXPLICIT} {named!r}", expected)
    home = os.path.abspath(folder)
    if "\0" in named or os.path.commonpath([home, os.path.abspath(folder / named)]) != home:
        raise CheckpointError(config, f"{_EXPLICIT} {named!r}", "a file inside the folder")
    if not (folder / named).is_file():
        raise CheckpointError(
            folder / named,
            f"is missing, although {_EXPLICIT} in config.json names it",
            hint="fetch the file, or remove the key",
        )
    return folder / named


def _ignored(folder: Path, first: Path, files: list[Path]) -> tuple[str, ...]:
    """A note of weight files that are there and not read."""
    read = {first.name, *(file.name for file in files)}
    others = {file.name for pattern in _WEIGHTS for file in folder.glob(pattern)}
    left = sorted(name for name in others - read if not _is_no_weights(name))
    if not left:
        return ()
    more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
    return (
        f"Not read: {', '.join(left[:_SHOWN])}{more}; as in Transformers, "
        f"{first.relative_to(folder)} takes precedence",
    )


def _is_no_weights(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in _NO_WEIGHTS)


def _read_index(path: Path) -> dict[str, str]:
    expected = "a JSON object with a weight_map"
    try:
        whole = parse_json(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(path, f"is not JSON ({error})", expected, hint=INTERRUPTED) from error
    if not isinstance(whole, dict):
        raise CheckpointError(path, f"a JSON {json_kind(whole)}", expected, hint=INTERRUPTED)
    if "weight_map" not in whole:
        raise CheckpointError(path, "an object without a weight_map", expected, hint=INTERRUPTED)
    index = whole["weight_map"]
    if not isinstance(index, dict) or not index or not all(isinstance(name, str) for name in index.values()):
        raise CheckpointError(
            path, "a weight_map that does not map to file names", "file names by tensor names"
        )
    for tensor, name in index.items():
        # A name with a path in it could point anywhere on the disk.
        plain = Path(name).name == name and name != ".." and "\0" not in name and is_text(name)
        if not plain or len(name.encode()) > _LONGEST_NAME:
            raise CheckpointError(path, f"file name {shown(name)}", "a plain file name", tensor=tensor)
    return index
