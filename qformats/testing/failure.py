"""What a check says: that something is wrong, or that it does not apply."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from qformats.errors import PluginError, QFormatsError

__all__ = ["CheckFailure", "Mismatch", "NotApplicable", "expect", "raised", "reported"]

Subject = TypeVar("Subject")
Parameters = ParamSpec("Parameters")


class CheckFailure(QFormatsError, AssertionError):
    """A plugin does not do what the framework relies on.

    Parameters
    ----------
    check : str
        Name of the check.
    subject : str
        Name of the format, quantizer or container.
    plugin : str
        Module that it comes from.
    found, expected : str
        What the check saw, and what it should have seen.
    hint : str, optional
        What to do about it.

    Examples
    --------
    >>> from qformats.testing import CheckFailure
    >>> print(CheckFailure("check_descriptor", "toy:int6", "qformats_toy", "5 bits", "6", "Correct the spec"))
    check_descriptor: toy:int6 of qformats_toy: found 5 bits; expected 6. Correct the spec.
    """

    def __init__(
        self, check: str, subject: str, plugin: str, found: str, expected: str, hint: str | None = None
    ) -> None:
        self.check, self.subject, self.plugin = check, subject, plugin
        self.found, self.expected, self.hint = found, expected, hint
        text = f"{check}: {subject} of {plugin}: found {found.rstrip('.')}; expected {expected.rstrip('.')}."
        super().__init__(text + (f" {hint.rstrip('.')}." if hint else ""))


class NotApplicable(QFormatsError):
    """A check that says nothing about this format, quantizer or container, and why.

    Examples
    --------
    >>> import qformats
    >>> from qformats.testing import NotApplicable, check_sqnr_floor
    >>> try:
    ...     check_sqnr_floor(qformats.packer("dense:f32"))
    ... except NotApplicable as reason:
    ...     print(reason)
    the descriptor declares no sqnr_floor_db
    """


class Mismatch(Exception):
    """What a check found, before it is known which check it was and of whom."""

    def __init__(self, found: str, expected: str, hint: str | None = None) -> None:
        super().__init__(found, expected, hint)
        self.found, self.expected, self.hint = found, expected, hint


def expect(condition: object, found: str, expected: str, hint: str | None = None) -> None:
    """Fail unless `condition` holds.

    Examples
    --------
    >>> from qformats.testing.failure import expect
    >>> expect(1 + 1 == 2, "3", "2")
    """
    if not condition:
        raise Mismatch(found, expected, hint)


def raised(error: Exception) -> str:
    """What an exception says, in one line; for a plugin's author, who needs no advice for users.

    Examples
    --------
    >>> from qformats.testing.failure import raised
    >>> raised(KeyError("scale"))
    "KeyError: 'scale'"
    """
    if isinstance(error, PluginError):
        return f"{error.what} raised {raised(error.error)}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def reported(
    check: Callable[Concatenate[Subject, Parameters], None],
) -> Callable[Concatenate[Subject, Parameters], None]:
    """Let a check fail with its own name and that of its subject, whatever went wrong."""

    @functools.wraps(check)
    def told(subject: Subject, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        try:
            check(subject, *args, **kwargs)
        except (NotApplicable, CheckFailure, MemoryError):
            raise
        except Mismatch as wrong:
            raise _failure(check, subject, wrong.found, wrong.expected, wrong.hint) from None
        except Exception as error:
            raise _failure(check, subject, raised(error), "no error", None) from error

    return told


def _failure(
    check: Callable[..., None], subject: Any, found: str, expected: str, hint: str | None
) -> CheckFailure:
    name = str(getattr(subject, "name", subject))
    plugin = type(subject).__module__.partition(".")[0]
    return CheckFailure(check.__name__, name, plugin, found, expected, hint)
