"""Discovery of plugins, and who owns which name.

Built-ins and third parties register through the same entry-point group, ``qformats``. Discovery is our own
loop and not pluggy's: one broken plugin must never take the others down, a misspelt hook is an error of the
plugin that misspelt it, and a name that is taken is refused with both owners named. This guards against
accidents, not against hostile code in the same process.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pluggy

from qformats import hookspecs
from qformats.errors import (
    AmbiguousFormatError,
    ConfigError,
    NameTakenError,
    PluginError,
    PluginLoadError,
    UnknownFormatError,
    spelled,
)
from qformats.interfaces import Family, Loader, ModelClass, Packer, Quantizer
from qformats.interfaces.naming import meanings, nearest, substitutes
from qformats.work.arguments import name as of_type

__all__ = ["PluginRecord", "PluginWarning", "Registry", "registry"]

T = TypeVar("T")

GROUP = "qformats"
"""Entry-point group."""
SWITCH = "QFORMATS_PLUGINS"
"""Environment variable: comma-separated names of the third-party plugins to load; empty for none."""


class PluginWarning(UserWarning):
    """A plugin was not loaded, or only in part."""


@dataclass
class PluginRecord:
    """State of one plugin.

    Attributes
    ----------
    name : str
        Name of its entry point.
    distribution, version : str
        Installed package that provides it.
    target : str
        Module of the entry point.
    error : str or None
        Why it was refused; ``None`` if it works.
    quantizers, formats, loaders, models : list of str
        Names that it registered.
    hooks : list of str
        Hooks of other plugins, or of its own, that it implements.
    """

    name: str
    distribution: str
    version: str
    target: str
    error: str | None = None
    quantizers: list[str] = field(default_factory=list)
    formats: list[str] = field(default_factory=list)
    loaders: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    hooks: list[str] = field(default_factory=list)

    @property
    def owner(self) -> str:
        """How messages refer to it."""
        return f"plugin {self.name!r} of {self.distribution} {self.version}"


class Registry:
    """Every quantizer, family, loader and model class that is installed.

    Parameters
    ----------
    points : iterable of EntryPoint, optional
        Instead of the installed ones; for tests.
    """

    def __init__(self, points: Iterable[EntryPoint] | None = None) -> None:
        self.plugins: list[PluginRecord] = []
        self._quantizers: dict[str, tuple[type[Quantizer], PluginRecord]] = {}
        self._families: dict[str, list[Family]] = {}
        self._formats: dict[str, tuple[Family, PluginRecord]] = {}
        self._loaders: dict[str, tuple[Loader, PluginRecord]] = {}
        self._models: dict[str, tuple[ModelClass, PluginRecord]] = {}
        self._hooks: dict[str, list[tuple[PluginRecord, Any]]] = {}
        manager = pluggy.PluginManager(GROUP)
        manager.add_hookspecs(hookspecs)
        points = list(entry_points(group=GROUP) if points is None else points)
        later = []
        for point in _in_order(points):
            record = _record(point)
            self.plugins.append(record)
            known = len(self._hooks)
            self._try(manager, point, record)
            if record.error is not None:
                later.append((point, record, known))
        for point, record, known in later:
            # It may implement a hook of a plugin that was loaded after it.
            if len(self._hooks) > known:
                record.error = None
                self._try(manager, point, record)
        for name in sorted((_chosen() or set()) - {point.name for point in points}):
            reason = f"{SWITCH} names it, but nothing installed has a plugin of that name"
            self.plugins.append(PluginRecord(name, "not installed", "", "", reason))

    def _try(self, manager: pluggy.PluginManager, point: EntryPoint, record: PluginRecord) -> None:
        try:
            self._load(manager, point, record)
        except PluginLoadError as error:
            record.error = error.reason
        except NameTakenError as error:
            record.error = str(error)

    def _load(self, manager: pluggy.PluginManager, point: EntryPoint, record: PluginRecord) -> None:
        for other in self.plugins:
            if other is not record and other.name == record.name and other.error is None:
                raise NameTakenError("plugin", record.name, other.owner, record.owner)
        plugin = _guarded(record, "", point.load)
        for other in self.plugins:
            if other is not record and manager.get_plugin(other.name) is plugin:
                reason = f"{record.target} is already registered by {other.owner}"
                raise PluginLoadError(record.name, reason)
        try:
            manager.register(plugin, name=record.name)
            self._specify(manager, plugin, record)
            manager.check_pending()
            self._collect(manager, plugin, record)
        except BaseException as error:
            # What stays registered would fail the check of every plugin that follows. Whether a plugin that
            # failed to register is registered depends on pluggy's version.
            if manager.is_registered(plugin):
                manager.unregister(plugin)
            if isinstance(error, pluggy.PluginValidationError):
                raise PluginLoadError(record.name, _suggested(manager, plugin, _one_line(error))) from error
            raise

    def _specify(self, manager: pluggy.PluginManager, plugin: object, record: PluginRecord) -> None:
        """Take the hooks that the plugin has for others."""
        hook = "qformats_register_hooks"
        modules = _returned(manager, plugin, hook, record)
        if modules is None:
            return
        if not isinstance(modules, list) or not all(isinstance(each, ModuleType) for each in modules):
            reason = f"{hook} returned {modules!r}, expected a list of modules"
            raise PluginLoadError(record.name, reason)
        for module in modules:
            names = [name for name in vars(module) if name.startswith("qformats_")]
            for name in names:
                if hasattr(manager.hook, name) and getattr(manager.hook, name).has_spec():
                    raise NameTakenError("hook", name, "another plugin or the framework", record.owner)
            _guarded(record, hook, partial(manager.add_hookspecs, module))
            self._hooks.update({name: [] for name in names})

    def _collect(self, manager: pluggy.PluginManager, plugin: object, record: PluginRecord) -> None:
        """Take the plugin's classes: all of them, or none if one is refused."""
        if not manager.get_hookcallers(plugin):
            reason = f"{record.target} has no hook: mark its functions with @qformats.hookimpl"
            raise PluginLoadError(record.name, reason)
        quantizers: dict[str, type[Quantizer]] = {}
        for quantizer in _classes(manager, plugin, "quantizers", Quantizer, record):
            name = _attribute(quantizer, "name", record)
            self._claim("quantizer", name, record, quantizers, self._quantizers)
            _guarded(record, f"{quantizer.__qualname__}()", quantizer)
            quantizers[name] = quantizer
        loaders: dict[str, Loader] = {}
        for loader in _classes(manager, plugin, "loaders", Loader, record):
            name = _attribute(loader, "name", record)
            self._claim("loader", name, record, loaders, self._loaders)
            loaders[name] = _guarded(record, f"{loader.__qualname__}()", loader)
        models: dict[str, ModelClass] = {}
        for model in _classes(manager, plugin, "models", ModelClass, record):
            name = _attribute(model, "name", record)
            self._claim("model class", name, record, models, self._models)
            models[name] = _guarded(record, f"{model.__qualname__}()", model)
        formats: dict[str, Family] = {}
        families = [
            _guarded(record, f"{family.__qualname__}()", family)
            for family in _classes(manager, plugin, "families", Family, record)
        ]
        for family in families:
            for name in _formats(family, record):
                self._claim("format", name, record, formats, self._formats)
                formats[name] = family
        others = [(hook, _returned(manager, plugin, hook, record)) for hook in self._hooks]
        self._quantizers.update({name: (quantizer, record) for name, quantizer in quantizers.items()})
        self._loaders.update({name: (loader, record) for name, loader in loaders.items()})
        self._models.update({name: (model, record) for name, model in models.items()})
        self._formats.update({name: (family, record) for name, family in formats.items()})
        for family in families:
            self._families.setdefault(family.name, []).append(family)
        for hook, value in others:
            if value is not None:
                self._hooks[hook].append((record, value))
                record.hooks.append(hook)
        record.quantizers, record.loaders = list(quantizers), list(loaders)
        record.models, record.formats = list(models), list(formats)

    @staticmethod
    def _claim(
        kind: str,
        name: str,
        record: PluginRecord,
        own: Mapping[str, object],
        taken: Mapping[str, tuple[object, PluginRecord]],
    ) -> None:
        if name in own:
            raise NameTakenError(kind, name, record.owner, record.owner)
        if name in taken:
            raise NameTakenError(kind, name, taken[name][1].owner, record.owner)

    @property
    def failures(self) -> dict[str, str]:
        """Plugins that were refused, and why."""
        return {f"{r.name} {r.distribution} {r.version}".rstrip(): r.error for r in self.plugins if r.error}

    def contributions(self, hook: str) -> list[tuple[str, Any]]:
        """What plugins returned from a hook of a plugin's own, each with how messages refer to the plugin."""
        return [(record.owner, value) for record, value in self._hooks[hook]]

    def packer(self, format: str) -> Packer:
        """Packer of a format, ``family:variant``, or a family's default.

        Raises
        ------
        UnknownFormatError
            If nothing installed provides the name.
        """
        return self._found(format)[1]

    def meant(self, name: str, suffix: str = "") -> Packer:
        """Packer of the format that a user means: also by a variant alone, in any case, or by another name of it.

        Parameters
        ----------
        name : str
            ``"gguf:q4_0"``, ``"gguf"``, ``"nf4"``, ``"bnb"``, ``"Q8_0"``.
        suffix : str
            How the target's name ends: of several formats, those are meant whose files end like that.

        Raises
        ------
        UnknownFormatError
            If nothing installed answers to the name.
        AmbiguousFormatError
            If several formats do.
        """
        try:
            return self.packer(of_type("format", name, "of a format"))
        except UnknownFormatError as error:
            found = meanings(name, self.families())
            if not found:
                raise self._unknown(name, error) from None
        if suffix:
            found = [p for p in found if self.loader(p.container).suffix == suffix] or found
        if len(found) > 1:
            raise AmbiguousFormatError(name, {p.name: p.spec.summary for p in found})
        return found[0]

    def writable(self, name: str) -> Packer:
        """Packer of the format that a user wants to write; see :meth:`meant`.

        Raises
        ------
        ConfigError
            If it can only be read; says which formats come nearest.
        """
        packer = self.meant(name)
        if not packer.writable:
            names = [p.spec.variant for p in self.formats() if p.family == packer.family and p.writable]
            allowed = "one that can be written" + (f": {', '.join(names)}" if names else "")
            raise ConfigError("type", packer.name, allowed, nearest=substitutes(packer, self.families()))
        return packer

    def family(self, packer: Packer) -> Family:
        """Family of a packer: the one that lists its variant, or else understands its name.

        Raises
        ------
        UnknownFormatError
            If nothing installed provides the packer's name.
        """
        return self._found(packer.name)[0]

    def _found(self, format: str) -> tuple[Family, Packer]:
        name, _, variant = format.partition(":")
        # A family that lists a variant comes before those whose `parse` would accept it as well.
        if format in self._formats:
            family = self._formats[format][0]
            return family, family.parse(variant)
        refused: UnknownFormatError | None = None
        for family in self._families.get(name, []):
            try:
                return family, family.parse(variant or family.default_variant)
            except UnknownFormatError as error:
                refused = error
        raise self._unknown(format, refused)

    def _unknown(self, format: str, refused: UnknownFormatError | None) -> UnknownFormatError:
        """Error about a name; `refused` is a family's own, which knows patterns of names that cannot be listed."""
        known = refused.installed if refused is not None else self.format_names()
        patterns = refused.patterns if refused is not None else ()
        close = nearest(format, self.families())
        prefix, _, word = format.lower().rpartition(":")
        told = (f.about(word) for f in self.families() if prefix in ("", f.name, *f.other_names))
        about = next(filter(None, told), "")
        return UnknownFormatError(format, known, self.failures, nearest=close, patterns=patterns, about=about)

    def format_names(self, family: str | None = None) -> list[str]:
        """Names of all formats, or of one family's."""
        return [name for name in self._formats if family is None or name.partition(":")[0] == family]

    def formats(self) -> list[Packer]:
        """List a packer of every format."""
        return [self.packer(name) for name in self.format_names()]

    def families(self) -> list[Family]:
        """Every family."""
        return [family for families in self._families.values() for family in families]

    def quantizer(self, name: str, options: Mapping[str, str] | None = None) -> Quantizer:
        """Quantizer of this name, set up with options.

        Raises
        ------
        UnknownFormatError
            If there is none.
        ConfigError
            If it has no such option.
        """
        if of_type("quantizer", name, "of a quantizer") not in self._quantizers:
            raise UnknownFormatError(name, self._quantizers, self.failures, kind="quantizer")
        quantizer = self._quantizers[name][0]()
        known = [option.name for option in quantizer.options]
        for option in options or {}:
            if option not in known:
                expected = "one of " + ", ".join(known) if known else "none: this quantizer has no options"
                raise ConfigError(f"option of the quantizer {name}", option, expected, self._owner(option))
        quantizer.given = dict(options or {})
        return quantizer

    def _owner(self, option: str) -> str | None:
        """What to add where an option belongs to another quantizer."""
        owners = [
            name
            for name, (other, _) in self._quantizers.items()
            if option in [known.name for known in other().options]
        ]
        names = " or ".join(spelled(f"--quantizer {name}", f"quantizer={name!r}") for name in owners)
        have = "has" if len(owners) == 1 else "have"
        return f"add {names}, which {have} this option" if owners else None

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

    def models(self) -> list[ModelClass]:
        """Every model class that a plugin brings."""
        return [model for model, _ in self._models.values()]

    def model_for(self, config: Mapping[str, Any]) -> ModelClass | None:
        """Model class that a plugin brings for a configuration; None if none does, and Transformers may have one."""
        return next((model for model in self.models() if model.describes(config)), None)

    def loader_for(self, path: Path) -> Loader | None:
        """First loader that recognises `path`; generic ones are asked last."""
        ordered = sorted(self.loaders(), key=lambda loader: loader.generic)
        return next((loader for loader in ordered if loader.detect(path)), None)


def _in_order(points: Iterable[EntryPoint]) -> list[EntryPoint]:
    """Sort built-ins first, so that nothing can displace them, then by distribution and name."""
    chosen = _chosen()

    def builtin(point: EntryPoint) -> bool:
        return point.dist is not None and point.dist.name == GROUP

    kept = [p for p in points if builtin(p) or chosen is None or p.name in chosen]
    return sorted(kept, key=lambda p: (not builtin(p), p.dist.name if p.dist else "", p.name))


def _chosen() -> set[str] | None:
    """Names in the environment variable; ``None`` if it is not set."""
    wanted = os.environ.get(SWITCH)
    return None if wanted is None else {name.strip() for name in wanted.split(",")} - {""}


def _record(point: EntryPoint) -> PluginRecord:
    distribution = point.dist.name if point.dist else "unknown distribution"
    return PluginRecord(point.name, distribution, point.dist.version if point.dist else "?", point.value)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _suggested(manager: pluggy.PluginManager, plugin: object, reason: str) -> str:
    """Why pluggy refused a plugin, with the correct name of a hook that it misspelt."""
    known = [name for name in vars(manager.hook) if getattr(manager.hook, name).has_spec()]
    for name in dir(plugin):
        if manager.parse_hookimpl_opts(plugin, name) is not None and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            return f"{reason}; " + (f"did you mean {near[0]}?" if near else f"hooks are {', '.join(known)}")
    return reason


def _guarded(record: PluginRecord, what: str, call: Callable[[], T]) -> T:
    """Run code of a plugin, which may raise anything, even SystemExit; only Ctrl-C goes through."""
    try:
        return call()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        cause = error.error if isinstance(error, PluginError) else error
        reason = f"{type(cause).__name__}: {_one_line(cause)}".removesuffix(": ")
        raise PluginLoadError(record.name, f"{what} raised {reason}" if what else reason) from error


def _returned(manager: pluggy.PluginManager, plugin: object, hook: str, record: PluginRecord) -> Any:
    """What a plugin returns from a hook; None if it does not implement it."""
    for implementation in getattr(manager.hook, hook).get_hookimpls():
        if implementation.plugin is plugin:
            return _guarded(record, hook, implementation.function)
    return None


def _classes(
    manager: pluggy.PluginManager, plugin: object, kind: str, base: Any, record: PluginRecord
) -> Sequence[type[Any]]:
    """Classes that a plugin's hook for quantizers, families, loaders or models returns."""
    hook = f"qformats_register_{kind}"
    found = _returned(manager, plugin, hook, record)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(i, type) and issubclass(i, base) for i in found):
        reason = f"{hook} returned {found!r}, expected a list of subclasses of {base.__name__}"
        raise PluginLoadError(record.name, reason)
    return found


def _formats(family: Family, record: PluginRecord) -> list[str]:
    """Full names of a family's variants, each of which it must also answer to."""
    label = type(family).__qualname__
    name = _attribute(type(family), "name", record)
    if ":" in name:
        raise PluginLoadError(record.name, f"{label}.name is {name!r}, expected a name without ':'")
    variants = _guarded(record, f"{label}.variants()", family.variants)
    names = isinstance(variants, Sequence) and not isinstance(variants, str)
    if not names or not variants or not all(isinstance(each, str) and each for each in variants):
        reason = f"{label}.variants() returned {variants!r}, expected a sequence of one name or more"
        raise PluginLoadError(record.name, reason)
    default = _guarded(record, f"{label}.default_variant", lambda: family.default_variant)
    for variant in dict.fromkeys((*variants, default)):
        made = _guarded(record, f"{label}.parse({variant!r})", partial(family.parse, variant))
        found = made.spec.name if isinstance(made, Packer) and hasattr(made, "spec") else repr(made)
        if found != f"{name}:{variant}":
            reason = f"{label}.parse({variant!r}) gave {found}, expected a packer of {name}:{variant}"
            raise PluginLoadError(record.name, reason)
        if not isinstance(made.container, str) or not made.container:
            reason = (
                f"the packer of {name}:{variant} has no container: set container = '...' in its class body"
            )
            raise PluginLoadError(record.name, reason)
    _check_names(family, record)
    return [f"{name}:{variant}" for variant in variants]


def _check_names(family: Family, record: PluginRecord) -> None:
    """Refuse other names of a family's formats that nobody could use."""
    label = type(family).__qualname__
    words = (*family.other_names, *family.aliases, *family.similar)
    if not all(isinstance(word, str) and word and word == word.lower() and ":" not in word for word in words):
        reason = f"{label} has the other names {', '.join(map(repr, words))}, expected lower case and no ':'"
        raise PluginLoadError(record.name, reason)
    for variant in (*family.aliases.values(), *(v for each in family.similar.values() for v in each)):
        _guarded(record, f"{label}.parse({variant!r})", partial(family.parse, variant))


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
