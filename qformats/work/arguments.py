"""Arguments of the Python interface that are easily given in another shape."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from qformats.errors import ConfigError, Described

__all__ = ["mapping", "name", "names", "path", "several", "told"]


def told(given: object) -> object:
    """A wrong argument as messages show it: its value if that is short to say, and else what it is.

    Examples
    --------
    >>> from qformats.work.arguments import told
    >>> import numpy as np
    >>> told(3), told(np.zeros(4)), told({})
    (3, numpy.ndarray, dict)
    """
    if given is None or isinstance(given, bool | int | float | str | bytes):
        return given
    kind = type(given)
    module = kind.__module__.partition(".")[0]
    return Described(kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}")


def path(key: str, given: object, expected: str = "a path") -> Path:
    """A path, with the user's home in place of ``~``.

    Raises
    ------
    ConfigError
        If it is none.

    Examples
    --------
    >>> from qformats.work.arguments import path
    >>> path("target", "model").name
    'model'
    """
    if not isinstance(given, str | os.PathLike):
        raise ConfigError(key, told(given), expected)
    return Path(given).expanduser()


def several(key: str, given: object) -> tuple[object, ...]:
    """One path, or several.

    Raises
    ------
    ConfigError
        If it is neither.

    Examples
    --------
    >>> from qformats.work.arguments import several
    >>> several("imatrix", "a.gguf"), several("imatrix", ["a.gguf", "b.dat"])
    (('a.gguf',), ('a.gguf', 'b.dat'))
    """
    if isinstance(given, str | os.PathLike):
        return (given,)
    if not isinstance(given, Iterable) or isinstance(given, Mapping | bytes):
        raise ConfigError(key, told(given), "a path, or several of them in a list")
    return tuple(given)


def name(key: str, given: object, what: str) -> str:
    """A name.

    Raises
    ------
    ConfigError
        If it is no text.

    Examples
    --------
    >>> from qformats.work.arguments import name
    >>> name("format", "dense:f16", "of a format")
    'dense:f16'
    """
    if not isinstance(given, str):
        raise ConfigError(key, told(given), f"the name {what}")
    return given


def names(key: str, given: str | Iterable[str]) -> tuple[str, ...]:
    """Names of formats and the like: one, or several.

    Raises
    ------
    ConfigError
        If it is neither, or something in it is no name.

    Examples
    --------
    >>> from qformats.work.arguments import names
    >>> names("try_", "gguf:q4_0"), names("try_", ["gguf:q4_0", "glm:int4"])
    (('gguf:q4_0',), ('gguf:q4_0', 'glm:int4'))
    """
    if isinstance(given, str):
        return (given,)
    found = tuple(given) if isinstance(given, Iterable) and not isinstance(given, Mapping | bytes) else None
    if found is None or not all(isinstance(name, str) for name in found):
        listed = isinstance(given, list | tuple | set | Mapping)
        raise ConfigError(key, given if listed else told(given), "a name, or several of them in a list")
    return found


def mapping(key: str, given: Mapping[str, str] | None) -> dict[str, str]:
    """Names and values; none by default.

    Raises
    ------
    ConfigError
        If it is no mapping, such as the ``name=value`` of the command line.

    Examples
    --------
    >>> from qformats.work.arguments import mapping
    >>> mapping("options", {"arch": "llama"}), mapping("options", None)
    ({'arch': 'llama'}, {})
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        hint = ""
        if isinstance(given, str) and "=" in given:
            name, _, value = given.rpartition("=")
            hint = f"such as {{{name!r}: {value!r}}}"
        raise ConfigError(key, given, "a dictionary of names and values", hint)
    return dict(given)
