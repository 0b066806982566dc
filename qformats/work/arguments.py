"""Arguments of the Python interface that are easily given in another shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qformats.errors import ConfigError

__all__ = ["mapping", "names"]


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
        raise ConfigError(key, given, "a name, or several of them in a list")
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
