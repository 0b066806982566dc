"""Attributing errors: an exception in a plugin's method reaches the user as one sentence naming the plugin."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from qformats.errors import PluginError, QFormatsError

__all__ = ["Guarded", "blamed"]

_NOT_ITS_FAULT = (QFormatsError, MemoryError, OSError)
"""Exceptions that are clear as they are, whoever raises them; Ctrl-C and the like are not of this kind."""


def blamed(error: Exception, owner: str, what: str) -> PluginError | None:
    """What to raise instead of a plugin's exception; ``None`` if it is clear as it is.

    Parameters
    ----------
    error : Exception
        What came.
    owner : str
        Module of the plugin's code.
    what : str
        What was called, such as ``"ToyPacker.pack"``.
    """
    # Running out of a device's memory is reported where devices are known.
    if isinstance(error, _NOT_ITS_FAULT) or type(error).__name__ == "OutOfMemoryError":
        return None
    return PluginError(owner.partition(".")[0], what, error)


class Guarded:
    """Base of the classes that plugins implement.

    Methods and properties in :attr:`guarded` that a subclass overrides are wrapped when it is defined: what they raise
    becomes a :class:`~qformats.errors.PluginError`, with the exception as its cause.
    """

    guarded: ClassVar[tuple[str, ...]] = ()
    """Methods and properties that plugins override."""
    role: ClassVar[str] = ""
    """Noun for an instance, in front of its name."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        for name in cls.guarded:
            method = cls.__dict__.get(name)
            if isinstance(method, property) and method.fget is not None:
                setattr(cls, name, property(_guarded(method.fget), method.fset, method.fdel))
            elif isinstance(method, functools.cached_property):
                cached = functools.cached_property(_guarded(method.func))
                cached.__set_name__(cls, name)
                setattr(cls, name, cached)
            elif callable(method):
                setattr(cls, name, _guarded(method))


def _file_of(*concerned: object) -> str | Path:
    """File or folder that a call is about: a path, or that of a model; empty if there is none."""
    for each in concerned:
        path = each if isinstance(each, Path) else getattr(each, "path", None)
        if isinstance(path, Path):
            return path
    return ""


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            instead = blamed(error, method.__module__, method.__qualname__)
            if instead is None:
                raise
            name = getattr(self, "name", "")
            subject = f"{self.role} {name}" if self.role and name else ""
            instead.about(subject=subject, file=_file_of(self, *args))
            raise instead from error

    return call
