"""From what a user types to a model on disk: a path, ``demo``, or a hub id."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from importlib.resources import files
from os import PathLike
from pathlib import Path

from qformats.errors import CheckpointError, ConfigError, Described, ModelNotFoundError
from qformats.folder.adapter import refuse_adapter
from qformats.folder.adapter_checkpoint import AdapterCheckpoint, holds_adapter
from qformats.folder.json_object import read_json
from qformats.folder.resolve import has_weights
from qformats.interfaces.checkpoint import Checkpoint
from qformats.registry import registry
from qformats.work.arguments import told
from qformats.work.downloads import Download
from qformats.work.files import fingerprint, refuse_link_out
from qformats.work.urls import url_of

__all__ = ["check_options", "download_of", "open_model", "outline_model"]

_RECORD = ".qformats.json"
"""How the name of an export's record ends; in a folder it is ``qformats.json``."""
DEMO = "demo"
"""Name of the small model that comes with the package; write ``./demo`` for a folder of that name."""
_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:/([\w./-]+))?")
_LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.\w+$")
"""Names of the parts of a split model after the first."""
_SHOWN = 8
"""Names that a message lists."""
_PATIENCE = 10.0
"""Seconds to wait for the hub's first answer."""
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "README.md"]


def open_model(
    model: str | PathLike[str], options: Mapping[str, str], *, adapter: bool = False
) -> Checkpoint:
    """Open a model by path or name; see :func:`qformats.open`."""
    path, name = _locate(model)
    path = _only_file(path)
    check_options(options)
    if adapter and holds_adapter(path):
        checkpoint: Checkpoint = AdapterCheckpoint(path)
    else:
        loader = registry().loader_for(path)
        if loader is None:
            raise _unrecognised(path)
        checkpoint = loader.open(path, loader.own_options(options))
    for file in checkpoint.files:
        # Loaders look before they read; here nothing escapes, whoever wrote them.
        refuse_link_out(file, path)
    checkpoint.name = name
    checkpoint.fingerprint = fingerprint(checkpoint.files)
    return checkpoint


def outline_model(model: str | PathLike[str], options: Mapping[str, str]) -> Checkpoint:
    """Open a model, or only its configuration if there is nothing else: a config.json, or a folder without weights.

    Raises
    ------
    CheckpointError, UnsupportedModelError
        If the configuration does not describe a known model.
    """
    path, name = _locate(model)
    config = path / "config.json" if path.is_dir() else path
    known = config.is_file() and config.suffix == ".json"
    if not known or (path.is_dir() and has_weights(path)) or len(_single_files(path)) == 1:
        return open_model(model, options)
    if config.name != "config.json" and (told := _record(config)):
        raise told
    content = read_json(config, path)
    for loader in sorted(registry().loaders(), key=lambda loader: loader.generic):
        outline = loader.outline(content, config)
        if outline is not None:
            outline.name = config.resolve().parent.name if config.name == "config.json" else name
            return outline
    raise CheckpointError(config, "no loader knows this model", "a model's config.json")


def _only_file(path: Path) -> Path:
    """The single-file model in a folder without other weights, or the path as it is.

    Raises
    ------
    ModelNotFoundError
        If there are several.
    """
    inside = _single_files(path)
    if not inside:
        return path
    if len(inside) > 1:
        found = f"a folder with {len(inside)} models in one file each, and no other weights"
        raise ModelNotFoundError(path, found, f"Give one of them: {_choice(inside)}")
    refuse_link_out(inside[0], path)
    return inside[0]


def _single_files(path: Path) -> list[Path]:
    """Models in one file each, or the first part of one, in a folder with a config.json and no weights beside it."""
    if not path.is_dir() or not (path / "config.json").is_file() or has_weights(path):
        return []
    inside = [file for file in sorted(path.iterdir()) if file.name.endswith(_suffixes()) and file.is_file()]
    # Of a split model without its first part, the loader says which parts are missing.
    return [file for file in inside if not _LATER_PART.search(file.name)] or inside[:1]


def _choice(files: Sequence[Path]) -> str:
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    return ", ".join(map(str, files[:_SHOWN])) + more


def check_options(options: Mapping[str, str]) -> None:
    """Refuse options that no loader knows."""
    known = {option.name for each in registry().loaders() for option in each.options}
    for option in options:
        if option not in known:
            raise ConfigError("option", option, "one of " + ", ".join(sorted(known)))


def _locate(model: str | PathLike[str]) -> tuple[Path, str]:
    """Path of a model on disk, and what to call it."""
    if not isinstance(model, str | PathLike):
        given = Described("one that is open already") if isinstance(model, Checkpoint) else told(model)
        raise ConfigError("model", given, f"a path, a hub id (organisation/name), or {DEMO!r}")
    text = str(model)
    if text == DEMO:
        # Some installers make every file of a package a link into their cache.
        config = os.path.realpath(str(files("qformats").joinpath("demo", "config.json")))
        return Path(config).parent, "demo-llama"
    hint = "Give a path, a hub id (organisation/name), or demo"
    if not text:
        raise ModelNotFoundError("''", "not the name of a file or folder", hint)
    try:
        path = Path(text).expanduser()
        if path.exists():
            resolved = path.resolve()
            return path, resolved.stem if resolved.is_file() else resolved.name
    except (OSError, RuntimeError, ValueError) as error:
        # No permission, a name that is too long, or an unknown user's home.
        raise ModelNotFoundError(text, f"cannot be a file or folder ({error})", hint) from error
    url = url_of(model)
    if url is not None:
        return download_of(url).fetch(), url.rpartition("/")[2].removesuffix(_suffix_of(url))
    found = _HUB_ID.fullmatch(text) if isinstance(model, str) and not text.startswith(".") else None
    if found is not None and (found[2] is None or found[2].endswith(_suffixes())):
        return _download(text, found[1], found[2]), found[1].split("/")[1]
    raise ModelNotFoundError(text, "no such file or folder", hint)


def download_of(url: str) -> Download:
    """The files of a model at a URL, to be fetched.

    Raises
    ------
    ModelNotFoundError, OutputError, BackendUnavailableError, ConfigError
        If there is none, or the store cannot be asked; see :class:`qformats.work.downloads.Download`.
    """
    patterns = (*_HUB_FILES, "pytorch_model*.bin", *(f"*{suffix}" for suffix in _suffixes()))
    return Download(url, lambda name: any(fnmatch(name, pattern) for pattern in patterns))


def _suffix_of(url: str) -> str:
    return next((suffix for suffix in _suffixes() if url.endswith(suffix)), "")


def _suffixes() -> tuple[str, ...]:
    """How the names of single-file models end."""
    return tuple(loader.suffix for loader in registry().loaders() if loader.suffix)


def _unrecognised(path: Path) -> ModelNotFoundError:
    """What is wrong with a path that no loader opens, for the usual mistakes."""
    if path.is_dir():
        refuse_adapter(path)
        inside = sorted(file.name for file in path.iterdir() if file.name.endswith(_suffixes()))
        if inside:
            files_are = "model file" if len(inside) == 1 else "model files"
            found = f"a folder with {len(inside)} {files_are} and no config.json"
            return ModelNotFoundError(path, found, f"Give the file, such as {path / inside[0]}")
        if any(path.glob("*.safetensors")) or any(path.glob("*.bin")):
            found = "a folder with weights and no config.json"
            return ModelNotFoundError(
                path, found, "Fetch config.json and the tokenizer files of the same model"
            )
        return ModelNotFoundError(path, "a folder without config.json", _readable())
    if path.suffix == ".json" and (told := _record(path)):
        return told
    if path.suffix in (".safetensors", ".bin", ".json"):
        return ModelNotFoundError(
            path, "one file of a folder", f"Give the folder that also holds config.json: {path.parent}"
        )
    if path.suffix in (".pt", ".pth"):
        found = "weights alone, which do not say what model they belong to"
        hint = "Put the file into a folder with config.json and the tokenizer files of that model, and give the folder"
        return ModelNotFoundError(path, found, hint)
    return ModelNotFoundError(path, "not a model that can be read", _readable())


def _record(path: Path) -> ModelNotFoundError | None:
    """What a JSON file of ours is, if it is one: the record of an export, or a report."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        # Not ours; the loaders say what else it may be.
        return None
    if not isinstance(content, dict):
        return None
    if "qformats" in content and "tensors" in content:
        found = (
            "the record of an export by qformats, which says what happened to each tensor, and not a model"
        )
        model = (
            path.with_name(path.name.removesuffix(_RECORD)) if path.name.endswith(_RECORD) else path.parent
        )
        hint = f"Give the model that it describes: {model}" if model.exists() else "Give the exported model"
        return ModelNotFoundError(path, found, hint)
    if {"base", "models", "identical"} <= content.keys():
        return ModelNotFoundError(
            path,
            "the report of a comparison by qformats, and not a model",
            "Give the models that it compares",
        )
    return None


def _readable() -> str:
    known = "; ".join(f"{loader.summary} ({loader.name})" for loader in registry().loaders())
    return f"A model is a {known}"


def _download(model: str, repository: str, file: str | None) -> Path:
    """Fetch a repository of the hub, or one file of it, into the hub's own cache."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    # Which exceptions the hub's client raises depends on the HTTP library of its version; each means: no model.
    unreached: Exception | None = None
    names: list[str] = []
    try:
        # Downloads retry for minutes; an unreachable hub shows here.
        info = HfApi().model_info(repository, timeout=_PATIENCE)
        names = [sibling.rfilename for sibling in info.siblings or []]
    except HfHubHTTPError as error:
        raise _unreachable(model, error) from error
    except Exception as error:
        unreached = error
    cached = unreached is not None
    single = [name for name in names if name.endswith(_suffixes())]
    if file is None and single and "config.json" not in names:
        found = f"a repository with {len(single)} single-file models and no config.json"
        raise ModelNotFoundError(model, found, f"Name the file, such as {repository}/{single[0]}")
    patterns = list(_HUB_FILES)
    if not cached and not any(name.endswith(".safetensors") for name in names):
        patterns.append("pytorch_model*.bin")
        if single and not any(name.endswith(".bin") for name in names):
            first = [name for name in single if not _LATER_PART.search(name)]
            if file is None and len(first) > 1:
                found = f"a repository with {len(first)} single-file models and no other weights"
                raise ModelNotFoundError(model, found, f"Name the file, such as {repository}/{first[0]}")
            patterns += single
    try:
        if file is not None:
            return Path(hf_hub_download(repository, file, local_files_only=cached))
        return Path(snapshot_download(repository, allow_patterns=patterns, local_files_only=cached))
    except Exception as error:
        raise _unreachable(model, unreached or error) from error


def _unreachable(model: str, error: Exception) -> ModelNotFoundError:
    reason = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
    return ModelNotFoundError(
        model,
        f"no such file or folder, not in the local hub cache, and not available from the hub ({reason[:200]})",
        "Check the name and the network; without a network, copy the model's folder (config.json, *.safetensors, "
        "tokenizer files) here and give its path",
    )
