"""Values of files that somebody else wrote: each is of its type and in its range, or an error that names it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn, TypeVar

from qformats.errors import CheckpointError, ConfigError, Described, shown

__all__ = ["REQUIRED", "Required", "Values"]

T = TypeVar("T")


class Required:
    """Stands where a default would, for a value that must be there."""


REQUIRED: Final = Required()
"""The only one."""
_LARGEST = 2**63 - 1
"""What counts and sizes are kept in, everywhere."""


class Values:
    """Values by key, of which nothing is known: of config.json, of a header, of an object inside of these.

    Every method returns a plain Python value of one type, the default if the key is absent (or ``null``), and otherwise
    raises an error that says what was found and what was expected. Booleans are not numbers, and numbers with a
    fraction part are not whole, not even ``2.0``.

    Parameters
    ----------
    values : mapping
        The values, as parsed.
    source : str
        File that they come from, for messages; empty if the caller names it.
    within : str
        Key of the object that they are in, for messages.

    Examples
    --------
    >>> from qformats.interfaces import Values
    >>> config = Values({"layers": 2, "rope": {"theta": 1e4}, "size": "7"}, "config.json")
    >>> config.integer("layers", minimum=1), config.section("rope").number("theta"), config.flag("tied", False)
    (2, 10000.0, False)
    >>> config.integer("size")
    Traceback (most recent call last):
    qformats.errors.CheckpointError: config.json: size: found '7'; expected a whole number.
    """

    def __init__(self, values: Mapping[str, Any], source: str = "", within: str = "") -> None:
        self._values, self.source, self._within = values, source, within

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def get(self, key: str) -> Any:
        """The value as it is; ``None`` if it is absent."""
        return self._values.get(key)

    def fail(self, key: str, found: object, expected: str, hint: str | None = None) -> NoReturn:
        """Refuse the value of a key.

        Raises
        ------
        CheckpointError
            If the file is known.
        ConfigError
            If not: whoever knows it names it.
        """
        name = f"{self._within}.{key}" if self._within else key
        if not self.source:
            raise ConfigError(name, found, expected, hint)
        raise CheckpointError(self.source, f"{name}: found {shown(found)}", expected, hint=hint)

    def _checked(
        self,
        key: str,
        default: T | Required,
        good: Callable[[Any], bool],
        expected: str,
        hint: str | None = None,
    ) -> Any | T:
        value = self.get(key)
        if value is None:
            if isinstance(default, Required):
                self.fail(key, Described("nothing"), expected, hint)
            return default
        if not good(value):
            self.fail(key, value, expected, hint)
        return value

    def integer(
        self,
        key: str,
        default: T | Required = REQUIRED,
        *,
        minimum: int = -_LARGEST - 1,
        maximum: int = _LARGEST,
        among: Sequence[int] = (),
        hint: str | None = None,
    ) -> int | T:
        """A whole number from `minimum` to `maximum`, by default any of 64 bits; one of `among`, if given."""

        def good(value: Any) -> bool:
            return _whole(value) and minimum <= value <= maximum and (not among or value in among)

        expected = "one of " + ", ".join(map(str, among)) if among else _range(minimum, maximum)
        return self._checked(key, default, good, expected, hint)

    def number(
        self,
        key: str,
        default: T | Required = REQUIRED,
        *,
        above: float = -math.inf,
        minimum: float = -math.inf,
        maximum: float = math.inf,
        hint: str | None = None,
    ) -> float | T:
        """A finite number above `above` and from `minimum` to `maximum`, whole or not; as a float."""
        least = "" if minimum == -math.inf else f" from {minimum:g}"
        least = f" above {above:g}" if above > -math.inf else least
        most = "" if maximum == math.inf else f" up to {maximum:g}"
        expected = f"a positive number{most}" if above == 0 else f"a number{least}{most}"

        def good(value: Any) -> bool:
            return _number(value) and value > above and minimum <= value <= maximum

        found: Any = self._checked(key, default, good, expected, hint)
        return float(found) if good(found) else found

    def text(self, key: str, default: T | Required = REQUIRED, *, among: Sequence[str] = ()) -> str | T:
        """A string; one of `among`, if given."""

        def good(value: Any) -> bool:
            return isinstance(value, str) and (not among or value in among)

        return self._checked(key, default, good, "one of " + ", ".join(among) if among else "text")

    def flag(self, key: str, default: T | Required = REQUIRED) -> bool | T:
        """``true`` or ``false``."""
        return self._checked(key, default, lambda value: isinstance(value, bool), "true or false")

    def strings(self, key: str, default: T | Required = REQUIRED) -> list[str] | T:
        """A list of strings."""

        def good(value: Any) -> bool:
            return isinstance(value, list) and all(isinstance(each, str) for each in value)

        return self._checked(key, default, good, "a list of strings")

    def integers(self, key: str, default: T | Required = REQUIRED) -> list[int] | T:
        """A list of whole numbers of 64 bits."""
        return self._numbers(
            key, default, lambda each: _whole(each) and abs(each) <= _LARGEST, "whole numbers"
        )

    def numbers(
        self, key: str, default: T | Required = REQUIRED, *, largest: float = math.inf
    ) -> list[float] | T:
        """A list of finite numbers of a magnitude up to `largest`."""
        limit = "" if largest == math.inf else f" up to {largest:g}"
        return self._numbers(
            key, default, lambda each: _number(each) and abs(each) <= largest, f"finite numbers{limit}"
        )

    def _numbers(self, key: str, default: T | Required, good: Callable[[Any], bool], what: str) -> Any | T:
        found: Any = self._checked(key, default, lambda value: isinstance(value, list), f"a list of {what}")
        for place, each in enumerate(found if isinstance(found, list) else ()):
            if not good(each):
                # The list of a vocabulary is too long to be shown.
                self.fail(f"{key}[{place}]", each, what)
        return found

    def section(self, key: str) -> Values:
        """The object under a key; an empty one if it is absent."""
        found: Any = self._checked(key, {}, lambda value: isinstance(value, Mapping), "an object")
        return Values(found, self.source, f"{self._within}.{key}" if self._within else key)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        # A whole number beyond every float.
        return False


def _range(minimum: int, maximum: int) -> str:
    """What a whole number may be, in words."""
    most = "" if maximum == _LARGEST else f" up to {maximum}"
    if minimum == 1:
        return f"a positive whole number{most}"
    least = "" if minimum == -_LARGEST - 1 else f" from {minimum}"
    return f"a whole number{least}{most}"
