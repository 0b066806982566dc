"""An option of a loader or a quantizer, and the values that users write."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, overload

from qformats.errors import ConfigError

__all__ = ["Option", "number", "size", "switch"]


@dataclass(frozen=True)
class Option:
    """An option that a loader or a quantizer understands.

    Attributes
    ----------
    name, help : str
        How users write it, and what it does.
    decides : bool
        Whether it affects the result. Interrupted work is resumed even if other options have changed.
    flag : bool
        Whether ``qformats export`` also has it as ``--NAME VALUE``, for options that many users need.
    metavar : str
        Placeholder for the value in the help.
    bare : bool
        Whether it is ``--NAME`` without a value there, which means yes.
    file : bool
        Whether its value may be the name of a file, whose content then decides the result: records keep its checksum.

    Examples
    --------
    >>> from qformats.interfaces import Option
    >>> Option("samples", "how many pieces of text (128)", flag=True, metavar="N").name
    'samples'
    """

    name: str
    help: str
    decides: bool = True
    flag: bool = False
    metavar: str = "TEXT"
    bare: bool = False
    file: bool = False


@overload
def number(
    options: Mapping[str, str], name: str, default: int, low: int, high: int, *, whole: Literal[True] = True
) -> int: ...


@overload
def number(
    options: Mapping[str, str], name: str, default: float, low: float, high: float, *, whole: Literal[False]
) -> float: ...


def number(
    options: Mapping[str, str], name: str, default: float, low: float, high: float, *, whole: bool = True
) -> float:
    """Value of an option that is a number.

    Raises
    ------
    ConfigError
        If it is not a number, or out of range.

    Examples
    --------
    >>> from qformats.interfaces import number
    >>> number({"samples": "64"}, "samples", 128, 1, 1000), number({}, "samples", 128, 1, 1000)
    (64, 128)
    """
    text = options.get(name)
    if text is None:
        return default
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise ConfigError(name, text, f"a {'whole ' if whole else ''}number from {low:g} to {high:g}")
    return value


def switch(options: Mapping[str, str], name: str, default: bool) -> bool:
    """Value of an option that is ``yes`` or ``no``.

    Raises
    ------
    ConfigError
        If it is neither.

    Examples
    --------
    >>> from qformats.interfaces import switch
    >>> switch({"act-order": "no"}, "act-order", True), switch({}, "act-order", True)
    (False, True)
    """
    text = options.get(name)
    if text is None:
        return default
    if text.lower() not in ("yes", "no", "true", "false", "1", "0"):
        raise ConfigError(name, text, "yes or no")
    return text.lower() in ("yes", "true", "1")


_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?\s*")


def size(options: Mapping[str, str], name: str, default: str, *, low: int = 1) -> int:
    """Value of an option that is a number of bytes, such as ``500MB``, ``2G`` (powers of 1000) or ``4GiB``.

    >>> size({"max-shard-size": "2GB"}, "max-shard-size", "5GB"), size({}, "memory", "4KiB")
    (2000000000, 4096)

    Raises
    ------
    ConfigError
        If it is not a size, or below `low`.
    """
    text = options.get(name, default)
    match = _SIZE.fullmatch(text.upper())
    found = -1
    if match is not None and (match[2] or not match[3]):
        found = int(float(match[1]) * (1024 if match[3] else 1000) ** (" KMGT".index(match[2] or " ")))
    if found < low:
        raise ConfigError(name, text, "a size such as 500MB or 2GB")
    return found
