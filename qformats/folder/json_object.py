"""The JSON object in a file of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qformats.errors import CheckpointError
from qformats.work.files import json_kind, parse_json, refuse_link_out

__all__ = ["read_json"]

_FETCH = "fetch the file again"


def read_json(path: Path, model: Path | None = None) -> dict[str, Any]:
    """Object of a JSON file.

    Parameters
    ----------
    path : Path
        The file.
    model : Path, optional
        What the user named, out of which no link may lead.

    Raises
    ------
    CheckpointError
        If there is none, or it is a link that leads out of the model.

    Examples
    --------
    >>> import qformats
    >>> from qformats.folder import read_json
    >>> read_json(qformats.open("demo").path / "config.json")["model_type"]
    'llama'
    """
    if model is not None:
        refuse_link_out(path, model)
    try:
        parsed = parse_json(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(path, "is missing", "a Hugging Face folder") from error
    except ValueError as error:
        raise CheckpointError(
            path, f"is not JSON ({error})", "the model's configuration", hint=_FETCH
        ) from error
    if not isinstance(parsed, dict):
        raise CheckpointError(path, f"a JSON {json_kind(parsed)}", "an object")
    return parsed
