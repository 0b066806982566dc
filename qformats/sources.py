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
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


def open_model(model: str | PathLike[str], options: Mapping[str, str]) -> Checkpoint:
    """Open a model by path or name; see :func:`qformats.open`."""
    path, name = _locate(model)
    loader = registry().loader_for(path)
    if loader is None:
        known = "; ".join(f"{candidate.name}: {candidate.summary}" for candidate in registry().loaders())
        raise ModelNotFoundError(path, "no loader recognises this", f"Readable are {known}")
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
    path = Path(text).expanduser()
    if path.exists():
        resolved = path.resolve()
        return path, resolved.stem if resolved.suffix == ".gguf" else resolved.name
    if isinstance(model, str) and _HUB_ID.fullmatch(model) and not model.startswith("."):
        return _download(model), model.split("/")[1]
    raise ModelNotFoundError(
        text, "no such file or folder", "Give a path, a hub id (organisation/name), or demo"
    )


def _download(model: str) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    organisation, name, *inside = model.split("/")
    repository = f"{organisation}/{name}"
    where = (
        "Check the name and the network; without a network, copy the model's folder (config.json, *.safetensors, "
        "tokenizer files) here and give its path"
    )
    try:
        if inside:
            return Path(hf_hub_download(repository, "/".join(inside)))
        folder = Path(snapshot_download(repository, allow_patterns=_HUB_FILES))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(repository, allow_patterns=[*_HUB_FILES, "pytorch_model*.bin"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split("\n")[0].split())
        raise ModelNotFoundError(
            model, f"neither a file or folder here nor reachable on the hub ({reason})", where
        ) from error
    return folder
