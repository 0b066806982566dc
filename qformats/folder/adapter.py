"""Adapters: folders of PEFT, which hold what was trained on top of a model and not the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qformats.errors import CheckpointError, ModelNotFoundError
from qformats.folder.json_object import read_json
from qformats.work.files import refuse_link_out

__all__ = [
    "CONFIG",
    "STARTS",
    "adapter_beside",
    "adapter_config",
    "base_name",
    "refuse_adapter",
    "refuse_swapped",
    "require_adapter",
    "weights_file",
]

CONFIG = "adapter_config.json"
STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""PEFT's ways to start an adapter that leave the base's weights as they are."""


def adapter_config(folder: Path) -> dict[str, Any] | None:
    """What a folder says about the adapter in it; ``None`` if there is none.

    Raises
    ------
    CheckpointError
        If it is not readable.
    """
    return read_json(folder / CONFIG, folder) if (folder / CONFIG).is_file() else None


def require_adapter(folder: Path) -> dict[str, Any]:
    """What a folder says about the adapter in it.

    Raises
    ------
    ModelNotFoundError
        If there is no such folder.
    CheckpointError
        If there is no adapter in it.
    """
    if not folder.is_dir():
        found = "one file" if folder.exists() else "no such file or folder"
        raise ModelNotFoundError(folder, found, f"Give the folder of an adapter: it has an {CONFIG}")
    config = adapter_config(folder)
    if config is None:
        raise CheckpointError(folder, f"has no {CONFIG}", "the folder of an adapter, as PEFT saves it")
    return config


def refuse_swapped(adapter: Path, base: object) -> None:
    """Say so where a model is given as the adapter, and the adapter as the model.

    Parameters
    ----------
    adapter : Path
        What should be the folder of an adapter.
    base : object
        What should be a model, if it is a path.

    Raises
    ------
    ModelNotFoundError
        If it is the other way round.

    Examples
    --------
    >>> from pathlib import Path
    >>> from qformats.folder.adapter import refuse_swapped
    >>> refuse_swapped(Path("my-adapter"), "demo")
    """
    if not isinstance(base, str | Path) or not adapter.exists() or (adapter / CONFIG).is_file():
        return
    if (Path(base).expanduser() / CONFIG).is_file():
        hint = f"The adapter comes first: qformats merge {base} {adapter} -o OUT"
        raise ModelNotFoundError(adapter, f"no adapter, while {base} is one", hint)


def refuse_adapter(folder: Path) -> None:
    """Say what a folder is that holds an adapter where a model was expected.

    Raises
    ------
    ModelNotFoundError
        If there is an adapter in it.
    """
    config = adapter_config(folder)
    if config is None:
        return
    base = base_name(config)
    on = f" for {base}" if base else ""
    kind = str(config.get("peft_type") or "PEFT")
    hint = f"Merge it first: qformats merge {folder} {base or 'BASE'} -o OUT"
    raise ModelNotFoundError(folder, f"an adapter ({kind}){on}, without the weights of the model", hint)


def adapter_beside(folder: Path) -> tuple[str, ...]:
    """A note about an adapter that lies in the folder of a model."""
    if adapter_config(folder) is None:
        return ()
    return (
        f"Not applied: the adapter of {CONFIG}, which Transformers applies where PEFT is installed "
        f"(qformats merge {folder} {folder} -o OUT)",
    )


def weights_file(folder: Path) -> Path:
    """File of an adapter's tensors: the one that PEFT would read.

    Raises
    ------
    CheckpointError
        If there is none, or a link that leads elsewhere.
    """
    names = ("adapter_model.safetensors", "adapter_model.bin")
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(folder, "no weights of an adapter", " or ".join(names))
    refuse_link_out(found, folder)
    return found


def base_name(config: dict[str, Any]) -> str:
    """What the model was called that an adapter was trained on; empty if that is not known.

    Examples
    --------
    >>> from qformats.folder import base_name
    >>> base_name({"base_model_name_or_path": "organisation/model"}), base_name({})
    ('organisation/model', '')
    """
    name = config.get("base_model_name_or_path")
    return name if isinstance(name, str) else ""
