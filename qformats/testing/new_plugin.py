"""A plugin to begin with: a distribution of its own, with a format that passes all checks."""

from __future__ import annotations

import os
import re
import tempfile
from importlib.resources import files
from os import PathLike
from pathlib import Path
from string import Template

from qformats.errors import ConfigError, OutputError
from qformats.registry import registry
from qformats.work.targets import refuse_stream

__all__ = ["write_plugin"]

_NAME = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*")
_LONGEST = 40
_FILES = {
    "pyproject.toml.in": "pyproject.toml",
    "README.md.in": "README.md",
    "plugin.py.in": "{module}.py",
    "conftest.py.in": "tests/conftest.py",
    "test_plugin.py.in": "tests/test_{module}.py",
}
"""Templates, and what becomes of them."""


def write_plugin(name: str, folder: str | PathLike[str] | None = None) -> Path:
    """Write a distribution ``qformats-NAME`` with one module, which registers the format ``NAME:int4``.

    Parameters
    ----------
    name : str
        What the family of formats is called: lower-case letters, digits and single hyphens.
    folder : path-like, optional
        Folder to make; ``qformats-NAME`` by default. Nothing is left there if anything fails.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ConfigError
        If it is not such a name, or another plugin has it.
    OutputError
        If the folder exists, or cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from qformats.testing.new_plugin import write_plugin
    >>> with tempfile.TemporaryDirectory() as scratch:
    ...     folder = write_plugin("my-format", scratch + "/plugin")
    ...     sorted(file.name for file in folder.iterdir())
    ['README.md', 'pyproject.toml', 'qformats_my_format.py', 'tests']
    """
    _check_name(name)
    target = Path(folder).expanduser() if folder is not None else Path(f"qformats-{name}")
    refuse_stream(target)
    if target.exists() or target.is_symlink():
        raise OutputError(target, "exists already", "Choose another folder with --output")
    words = {
        "name": name,
        "module": f"qformats_{name.replace('-', '_')}",
        "Name": "".join(part.capitalize() for part in name.split("-")),
    }
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that it appears at once and whole.
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            made = Path(scratch, "plugin")
            _fill(made, words)
            os.rename(made, target)
    except OSError as error:
        raise OutputError(target, f"cannot be written ({error.strerror or error})") from error
    return target


def _check_name(name: str) -> None:
    if name.startswith("qformats"):
        hint = "The distribution is called qformats-NAME, and the family NAME"
        raise ConfigError("name of a plugin", name, "a name without qformats", hint)
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        expected = (
            f"lower-case letters, digits and single hyphens, such as my-format, at most {_LONGEST} characters"
        )
        raise ConfigError("name of a plugin", name, expected)
    known = registry()
    taken = {family.name for family in known.families()} | {record.name for record in known.plugins}
    taken |= {*known.quantizer_names()} | {loader.name for loader in known.loaders()}
    if name in taken:
        expected = f"a name that nothing installed has; {', '.join(sorted(taken))} are taken"
        raise ConfigError("name of a plugin", name, expected)


def _fill(folder: Path, words: dict[str, str]) -> None:
    templates = files("qformats.testing").joinpath("template")
    for template, name in _FILES.items():
        text = Template(templates.joinpath(template).read_text(encoding="utf-8")).substitute(words)
        path = folder / name.format(**words)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
