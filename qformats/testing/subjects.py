"""What is checked: from names, classes and objects to packers, quantizers and loaders."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from qformats.errors import ConfigError, UnknownFormatError
from qformats.interfaces import Family, Loader, Packer, Quantizer
from qformats.registry import registry

__all__ = ["Subject", "kind_of", "subjects"]

Subject: TypeAlias = Packer | Quantizer | Loader


def kind_of(subject: Subject) -> str:
    """One of ``"format"``, ``"quantizer"`` and ``"container"``.

    Examples
    --------
    >>> import qformats
    >>> from qformats.testing.subjects import kind_of
    >>> kind_of(qformats.packer("dense:f32"))
    'format'
    """
    if isinstance(subject, Packer):
        return "format"
    return "quantizer" if isinstance(subject, Quantizer) else "container"


def subjects(what: str | Subject | Family | Iterable[str | Subject | Family]) -> list[Subject]:
    """Whatever a name stands for, an object is, or several of them are.

    Parameters
    ----------
    what : str, Packer, Family, Quantizer, Loader, or iterable of these
        A format's name, a family (its listed variants), a quantizer or a container; a name that is several of these
        stands for all of them.

    Raises
    ------
    UnknownFormatError
        If nothing installed answers to a name.
    ConfigError
        If it is something else.

    Examples
    --------
    >>> from qformats.testing.subjects import subjects
    >>> [subject.name for subject in subjects("dense")]
    ['dense:f32', 'dense:f16', 'dense:bf16']
    """
    if isinstance(what, str):
        return _named(what)
    if isinstance(what, Packer | Quantizer | Loader):
        return [what]
    if isinstance(what, Family):
        return [what.parse(variant) for variant in what.variants()]
    if isinstance(what, Iterable):
        return [subject for each in what for subject in subjects(each)]
    expected = "a name, a Packer, a Family, a Quantizer or a Loader"
    raise ConfigError("what to check", getattr(what, "__name__", type(what).__name__), expected)


def _named(name: str) -> list[Subject]:
    known = registry()
    if ":" in name:
        return [known.packer(name)]
    found: list[Subject] = [known.packer(format) for format in known.format_names(name)]
    if name in known.quantizer_names():
        found.append(known.quantizer(name))
    found += [loader for loader in known.loaders() if loader.name == name]
    if not found:
        families = [family.name for family in known.families()]
        loaders = [loader.name for loader in known.loaders()]
        everything = [*families, *known.quantizer_names(), *loaders, *known.format_names()]
        raise UnknownFormatError(name, {*everything}, known.failures, kind="format, quantizer or container")
    return found
