"""From what a user types to a model on disk: a path, ``demo``, or a hub id."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from os import PathLike
from pathlib import Path

from qformats.checkpoint import Checkpoint
from qformats.errors import ConfigError, ModelNotFoundError
from qformats.registry import registry

__all__ = ["open_model"]

DEMO = "demo"
"""Name of the small model that comes with the package; write ``./demo`` for a folder of that name."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(?:/[\w./-]+\.gguf)?")
_PATIENCE = 10.0
"""Seconds that the hub has for its first answer."""
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


def open_model(model: str | PathLike[str], options: Mapping[str, str]) -> Checkpoint:
    """Open a model by path or name; see :func:`qformats.open`."""
    path, name = _locate(model)
    loader = registry().loader_for(path)
    if loader is None:
        raise _unrecognised(path)
    known_options = {option.name for each in registry().loaders() for option in each.options}
    for option in options:
        if option not in known_options:
            raise ConfigError("option", option, "one of " + ", ".join(sorted(known_options)))
    own = {option.name for option in loader.options}
    checkpoint = loader.open(path, {key: value for key, value in options.items() if key in own})
    checkpoint.name = name
    return checkpoint


def _locate(model: str | PathLike[str]) -> tuple[Path, str]:
    """Path of a model on disk, and what to call it."""
    text = str(model)
    if text == DEMO:
        return Path(str(files("qformats").joinpath("demo"))), "demo-llama"
    hint = "Give a path, a hub id (organisation/name), or demo"
    if not text:
        raise ModelNotFoundError("''", "no name of a file or folder", hint)
    try:
        path = Path(text).expanduser()
        if path.exists():
            resolved = path.resolve()
            return path, resolved.stem if resolved.suffix == ".gguf" else resolved.name
    except (OSError, RuntimeError, ValueError) as error:
        # No permission, a name that is too long, or the home of nobody.
        raise ModelNotFoundError(text, f"cannot be a file or folder ({error})", hint) from error
    if isinstance(model, str) and _HUB_ID.fullmatch(model) and not model.startswith("."):
        return _download(model), model.split("/")[1]
    raise ModelNotFoundError(text, "no such file or folder", hint)


def _unrecognised(path: Path) -> ModelNotFoundError:
    """What is wrong with a path that no loader opens, for the usual mistakes."""
    if path.is_dir():
        inside = sorted(file.name for file in path.glob("*.gguf"))
        if inside:
            found = (
                f"a folder with {len(inside)} GGUF file{'s' if len(inside) > 1 else ''} and no config.json"
            )
            return ModelNotFoundError(path, found, f"Give the file, such as {path / inside[0]}")
        if any(path.glob("*.safetensors")) or any(path.glob("*.bin")):
            found = "a folder with weights and no config.json"
            return ModelNotFoundError(
                path, found, "Fetch config.json and the tokenizer files of the same model"
            )
        return ModelNotFoundError(path, "a folder without config.json", _readable())
    if path.suffix in (".safetensors", ".bin", ".json"):
        return ModelNotFoundError(
            path, "one file of a folder", f"Give the folder that also holds config.json: {path.parent}"
        )
    return ModelNotFoundError(path, "no model that can be read", _readable())


def _readable() -> str:
    known = "; ".join(f"{loader.summary} ({loader.name})" for loader in registry().loaders())
    return f"A model is a {known}"


def _download(model: str) -> Path:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    organisation, name, *inside = model.split("/")
    repository = f"{organisation}/{name}"
    # Which exceptions the hub's client raises depends on the HTTP library of its version; each means: no model.
    unreached: Exception | None = None
    try:
        # Downloads retry for minutes; that a hub does not answer shows here.
        HfApi().model_info(repository, timeout=_PATIENCE)
    except HfHubHTTPError as error:
        raise _unreachable(model, error) from error
    except Exception as error:
        unreached = error
    cached = unreached is not None
    try:
        if inside:
            return Path(hf_hub_download(repository, "/".join(inside), local_files_only=cached))
        folder = Path(snapshot_download(repository, allow_patterns=_HUB_FILES, local_files_only=cached))
        if not any(folder.glob("*.safetensors")) and not cached:
            folder = Path(snapshot_download(repository, allow_patterns=[*_HUB_FILES, "pytorch_model*.bin"]))
    except Exception as error:
        raise _unreachable(model, unreached or error) from error
    return folder


def _unreachable(model: str, error: Exception) -> ModelNotFoundError:
    reason = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
    return ModelNotFoundError(
        model,
        f"no file or folder here, not in the local cache of the hub, and not to be had from the hub ({reason[:200]})",
        "Check the name and the network; without a network, copy the model's folder (config.json, *.safetensors, "
        "tokenizer files) here and give its path",
    )
