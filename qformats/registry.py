"""Discovery of plugins, and who owns which name.

Built-ins and third parties register through the same entry-point group, ``qformats``. Discovery is our own loop and
not pluggy's: one broken plugin must never take the others down, a misspelt hook is an error of the plugin that
misspelt it, and a name that is taken is refused with both owners named. This guards against accidents, not
against hostile code in the same process.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TypeVar

import pluggy

from qformats import hookspecs
from qformats.errors import NameTakenError, PluginLoadError, UnknownFormatError
from qformats.interfaces import Loader, Packer, Quantizer

__all__ = ["PluginRecord", "PluginWarning", "Registry", "registry"]

T = TypeVar("T")

GROUP = "qformats"
"""Entry-point group."""
SWITCH = "QFORMATS_PLUGINS"
"""Environment variable: comma-separated names of the third-party plugins to load; empty for none."""


class PluginWarning(UserWarning):
    """A plugin was not loaded, or not wholly."""


@dataclass
class PluginRecord:
    """What became of one plugin.

    Attributes
    ----------
    name : str
        Name of its entry point.
    distribution, version : str
        Installed package that brought it.
    target : str
        Module of the entry point.
    error : str or None
        Why it was refused; ``None`` if it works.
    quantizers, formats, loaders : list of str
        Names that it registered.
    """

    name: str
    distribution: str
    version: str
    target: str
    error: str | None = None
    quantizers: list[str] = field(default_factory=list)
    formats: list[str] = field(default_factory=list)
    loaders: list[str] = field(default_factory=list)

    @property
    def owner(self) -> str:
        """How messages call it."""
        return f"plugin {self.name!r} of {self.distribution} {self.version}"


class Registry:
    """Every quantizer, packer and loader that is installed.

    Parameters
    ----------
    points : iterable of EntryPoint, optional
        Instead of the installed ones; for tests.
    """

    def __init__(self, points: Iterable[EntryPoint] | None = None) -> None:
        self.plugins: list[PluginRecord] = []
        self._quantizers: dict[str, tuple[type[Quantizer], PluginRecord]] = {}
        self._packers: dict[str, list[tuple[type[Packer], PluginRecord]]] = {}
        self._loaders: dict[str, tuple[Loader, PluginRecord]] = {}
        manager = pluggy.PluginManager(GROUP)
        manager.add_hookspecs(hookspecs)
        for point in _in_order(entry_points(group=GROUP) if points is None else points):
            record = _record(point)
            self.plugins.append(record)
            try:
                self._load(manager, point, record)
            except PluginLoadError as error:
                record.error = error.reason
            except NameTakenError as error:
                record.error = str(error)
            if record.error:
                warnings.warn(f"{record.owner}: {record.error}", PluginWarning, stacklevel=2)

    def _load(self, manager: pluggy.PluginManager, point: EntryPoint, record: PluginRecord) -> None:
        for other in self.plugins:
            if other is not record and other.name == record.name and other.error is None:
                raise NameTakenError("plugin", record.name, other.owner, record.owner)
        # A plugin may raise anything while it is imported, SystemExit included; only the user's Ctrl-C goes through.
        try:
            plugin = point.load()
            manager.register(plugin, name=record.name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise PluginLoadError(record.name, f"{type(error).__name__}: {error}") from error
        try:
            manager.check_pending()
            self._collect(manager, plugin, record)
        except pluggy.PluginValidationError as error:
            manager.unregister(plugin)
            raise PluginLoadError(record.name, str(error)) from error
        except (PluginLoadError, NameTakenError):
            manager.unregister(plugin)
            raise

    def _collect(self, manager: pluggy.PluginManager, plugin: object, record: PluginRecord) -> None:
        """Take the plugin's classes: all of them, or none if one is refused."""
        quantizers = _classes(manager, plugin, "qformats_register_quantizers", Quantizer, record)
        packers = _classes(manager, plugin, "qformats_register_packers", Packer, record)
        loaders = _classes(manager, plugin, "qformats_register_loaders", Loader, record)
        for quantizer in quantizers:
            name = _attribute(quantizer, "name", record)
            if name in self._quantizers:
                raise NameTakenError("quantizer", name, self._quantizers[name][1].owner, record.owner)
        for loader in loaders:
            name = _attribute(loader, "name", record)
            if name in self._loaders:
                raise NameTakenError("loader", name, self._loaders[name][1].owner, record.owner)
        formats: list[str] = []
        for packer in packers:
            family = _attribute(packer, "family", record)
            variants = self._variants(packer, record)
            for rival, owner in self._packers.get(family, []):
                for variant in set(variants) & set(self._variants(rival, owner)):
                    raise NameTakenError("format", f"{family}:{variant}", owner.owner, record.owner)
            formats += [f"{family}:{variant}" for variant in variants]
        self._quantizers.update({quantizer.name: (quantizer, record) for quantizer in quantizers})
        self._loaders.update({loader.name: (loader(), record) for loader in loaders})
        for packer in packers:
            self._packers.setdefault(packer.family, []).append((packer, record))
        record.quantizers = [quantizer.name for quantizer in quantizers]
        record.loaders = [loader.name for loader in loaders]
        record.formats = formats

    @staticmethod
    def _variants(packer: type[Packer], record: PluginRecord) -> list[str]:
        try:
            return list(packer.variants())
        except Exception as error:
            reason = f"{packer.__qualname__}.variants() raised {type(error).__name__}: {error}"
            raise PluginLoadError(record.name, reason) from error

    @property
    def failures(self) -> dict[str, str]:
        """Plugins that were refused, and why."""
        return {f"{r.name} {r.distribution} {r.version}": r.error for r in self.plugins if r.error}

    def packer(self, format: str) -> Packer:
        """Packer of a format, ``family:variant``, or a family's default.

        Raises
        ------
        UnknownFormatError
            If nothing installed answers to the name.
        """
        family, _, variant = format.partition(":")
        candidates = self._packers.get(family, [])
        for packer, _ in candidates:
            try:
                return packer.parse(variant or packer.default_variant)
            except UnknownFormatError:
                continue
        raise UnknownFormatError(format, self.format_names(family if candidates else None), self.failures)

    def format_names(self, family: str | None = None) -> list[str]:
        """Names of all formats, or of one family's."""
        return [
            f"{name}:{variant}"
            for name, packers in self._packers.items()
            if family in (None, name)
            for packer, _ in packers
            for variant in packer.variants()
        ]

    def formats(self) -> list[Packer]:
        """A packer of every listed format."""
        return [self.packer(name) for name in self.format_names()]

    def families(self) -> list[type[Packer]]:
        """Every packer class."""
        return [packer for packers in self._packers.values() for packer, _ in packers]

    def quantizer(self, name: str) -> Quantizer:
        """Quantizer of this name.

        Raises
        ------
        UnknownFormatError
            If there is none.
        """
        if name not in self._quantizers:
            raise UnknownFormatError(name, self._quantizers, self.failures, kind="quantizer")
        return self._quantizers[name][0]()

    def quantizer_names(self) -> list[str]:
        """Names of all quantizers."""
        return list(self._quantizers)

    def loader(self, name: str) -> Loader:
        """Loader of this name.

        Raises
        ------
        UnknownFormatError
            If there is none.
        """
        if name not in self._loaders:
            raise UnknownFormatError(name, self._loaders, self.failures, kind="loader")
        return self._loaders[name][0]

    def loaders(self) -> list[Loader]:
        """Every loader."""
        return [loader for loader, _ in self._loaders.values()]

    def loader_for(self, path: Path) -> Loader | None:
        """First loader that recognises `path`."""
        return next((loader for loader in self.loaders() if loader.detect(path)), None)


def _in_order(points: Iterable[EntryPoint]) -> list[EntryPoint]:
    """Built-ins first, so that nobody can displace them; then by distribution and name, so that order is stable."""
    wanted = os.environ.get(SWITCH)
    chosen = None if wanted is None else {name.strip() for name in wanted.split(",")}

    def builtin(point: EntryPoint) -> bool:
        return point.dist is not None and point.dist.name == GROUP

    kept = [p for p in points if builtin(p) or chosen is None or p.name in chosen]
    return sorted(kept, key=lambda p: (not builtin(p), p.dist.name if p.dist else "", p.name))


def _record(point: EntryPoint) -> PluginRecord:
    distribution = point.dist.name if point.dist else "unknown distribution"
    return PluginRecord(point.name, distribution, point.dist.version if point.dist else "?", point.value)


def _classes(
    manager: pluggy.PluginManager, plugin: object, hook: str, base: type[T], record: PluginRecord
) -> Sequence[type[T]]:
    caller = getattr(manager.hook, hook)
    for implementation in caller.get_hookimpls():
        if implementation.plugin is plugin:
            try:
                found = implementation.function()
            except Exception as error:
                raise PluginLoadError(
                    record.name, f"{hook} raised {type(error).__name__}: {error}"
                ) from error
            if not isinstance(found, list) or not all(
                isinstance(item, type) and issubclass(item, base) for item in found
            ):
                raise PluginLoadError(
                    record.name,
                    f"{hook} returned {found!r}, expected a list of subclasses of {base.__name__}",
                )
            return found
    return []


def _attribute(cls: type, attribute: str, record: PluginRecord) -> str:
    value = getattr(cls, attribute, None)
    if not isinstance(value, str) or not value:
        raise PluginLoadError(
            record.name,
            f"class {cls.__qualname__} has no {attribute}: set {attribute} = '...' in the class body",
        )
    return value


@lru_cache(maxsize=1)
def registry() -> Registry:
    """Registry of this process, built on first use."""
    return Registry()
