"""The chat templates of a folder: which of the places that may hold one counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qformats.errors import CheckpointError
from qformats.interfaces.checkpoint import Checkpoint
from qformats.work.files import parse_json

__all__ = ["chat_templates", "default_template", "ignored_template"]

_FILE = "chat_template.jinja"
_SETTINGS = "tokenizer_config.json"
_PROCESSORS = "chat_template.json"
_FOLDER = "additional_chat_templates/"
_EXPECTED = "a template, or names and templates"


def chat_templates(files: Mapping[str, bytes], source: object) -> dict[str, str]:
    """Find the chat templates, by name; the one for ordinary use is called ``default``.

    As for Transformers' ``AutoTokenizer``, ``chat_template.jinja`` and ``additional_chat_templates/NAME.jinja`` replace
    ``chat_template`` in ``tokenizer_config.json``, and ``chat_template.json`` does not count (see `ignored_template`).

    Parameters
    ----------
    files : mapping of str to bytes
        Tokenizer files by path inside the folder.
    source : object
        The folder, for messages.

    Returns
    -------
    dict of str to str
        Empty if the model has none.

    Raises
    ------
    CheckpointError
        If the file that counts is malformed.

    Examples
    --------
    >>> from qformats.folder import chat_templates
    >>> old = b'{"chat_template": "old"}'
    >>> chat_templates({"tokenizer_config.json": old, "chat_template.jinja": b"new"}, "model")
    {'default': 'new'}
    """
    found = {"default": _text(files[_FILE], f"{source}/{_FILE}")} if _FILE in files else {}
    for name in sorted(files):
        if name.startswith(_FOLDER) and name.endswith(".jinja"):
            stem = name.removeprefix(_FOLDER).removesuffix(".jinja")
            found[stem] = _text(files[name], f"{source}/{name}")
    if not found and _SETTINGS in files:
        found = _entries(files[_SETTINGS], f"{source}/{_SETTINGS}")
    return found


def ignored_template(folder: Path) -> tuple[str, ...]:
    """A note of a ``chat_template.json``, which only Transformers' processors read (measured with 5.23).

    Examples
    --------
    >>> import qformats
    >>> from qformats.folder.chat import ignored_template
    >>> ignored_template(qformats.open("demo").path)
    ()
    """
    if not (folder / _PROCESSORS).is_file():
        return ()
    told = "as in Transformers, it is for processors of images and sound, and tokenizers ignore it"
    return (f"Not read: {_PROCESSORS}; {told}. To use its template, put it into {_FILE}",)


def default_template(source: Checkpoint) -> str | None:
    """Chat template of a model for ordinary use, None if it has none.

    Raises
    ------
    CheckpointError
        If the templates are malformed, or all for other uses.
    """
    found = chat_templates(source.tokenizer_files(), source.path)
    if found and "default" not in found:
        named = ", ".join(map(repr, found))
        raise CheckpointError(source.path, f"has only chat templates named {named}", "one named 'default'")
    return found.get("default")


def _text(data: bytes, file: str) -> str:
    try:
        return bytes(data).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(file, f"byte {error.start} is not UTF-8", "UTF-8 text") from error


def _entries(data: bytes, file: str) -> dict[str, str]:
    """Templates in a JSON file: one text, an object by name, or a list of objects with name and template."""
    text = _text(data, file)
    try:
        settings = parse_json(text)
    except ValueError as error:
        raise CheckpointError(file, f"not readable as JSON ({error})") from error
    value = settings.get("chat_template") if isinstance(settings, dict) else None
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    pairs: Iterable[tuple[Any, Any]]
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        pairs = [(entry.get("name"), entry.get("template")) for entry in value]
    else:
        raise CheckpointError(file, f"chat_template of type {type(value).__name__}", _EXPECTED)
    found = {}
    for name, template in pairs:
        if not isinstance(name, str) or not isinstance(template, str):
            raise CheckpointError(file, f"chat template {name!r} is not a string", _EXPECTED)
        found[name] = template
    return found
