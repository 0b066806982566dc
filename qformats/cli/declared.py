"""Options and commands that plugins declare."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qformats.cli.shared import Command, parameters, without_values

if TYPE_CHECKING:
    from qformats.interfaces.option import Option

__all__ = ["Declared", "WithDeclaredOptions", "command", "commands", "given"]

GROUP = "qformats.commands"
"""Entry-point group of commands: a command's name, and a typer function."""
_PANEL = "Options of plugins"


@dataclass
class Declared:
    """Values of options that plugins declare, by name."""

    loader: dict[str, str] = field(default_factory=dict)
    quantizer: dict[str, str] = field(default_factory=dict)


def given(context: typer.Context) -> Declared:
    """Options of plugins that the user set."""
    return context.obj if isinstance(context.obj, Declared) else Declared()


class WithDeclaredOptions(Command):
    """A command that also has the options that loaders and quantizers mark as flags."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Parameters of the command, then those of plugins."""
        own = super().get_params(ctx)
        if not hasattr(self, "_declared"):
            self._declared = _declared(frozenset(spelled for each in own for spelled in each.opts))
            self._params = _parameters(self._declared)
        return without_values([*own, *self._params])

    def invoke(self, ctx: Any) -> Any:
        """Run the command; it finds the values of plugins' options with :func:`given`."""
        found = ctx.obj = Declared()
        for key, (kind, option) in self._declared.items():
            value = ctx.params.pop(key)
            if value is not None:
                getattr(found, kind)[option.name] = "yes" if option.bare else value
        return super().invoke(ctx)


def _declared(taken: frozenset[str]) -> dict[str, tuple[str, Option]]:
    """Options of loaders and quantizers that are not added yet, with their owners, by parameter name."""
    from qformats.registry import registry

    known = registry()
    sources = [("loader", loader.options) for loader in known.loaders()]
    sources += [("quantizer", known.quantizer(name).options) for name in known.quantizer_names()]
    found: dict[str, tuple[str, Option]] = {}
    for kind, options in sources:
        for option in options:
            if option.flag and f"--{option.name}" not in taken:
                # Several containers may share an option.
                found.setdefault(f"plugin_{option.name.replace('-', '_')}", (kind, option))
    return found


def _parameters(declared: Mapping[str, tuple[str, Option]]) -> list[Any]:
    """Parameters as typer makes them from a function's signature."""

    def options(**values: str) -> None: ...

    made = []
    for name, (_, option) in declared.items():
        metavar = None if option.bare else option.metavar
        about = typer.Option(f"--{option.name}", metavar=metavar, help=option.help, rich_help_panel=_PANEL)
        kind = Annotated[bool | None, about] if option.bare else Annotated[str | None, about]
        made.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind))
    options.__annotations__ = {each.name: each.annotation for each in made}
    options.__signature__ = inspect.Signature(made)  # type: ignore[attr-defined]
    return [each for each in parameters(options) if each.name in declared]


def commands() -> dict[str, EntryPoint]:
    """Commands of plugins by name; of two with the same name the built-in one, or else the first."""
    wanted = os.environ.get("QFORMATS_PLUGINS")
    chosen = None if wanted is None else {name.strip() for name in wanted.split(",")}

    def builtin(point: EntryPoint) -> bool:
        return point.dist is not None and point.dist.name == "qformats"

    def allowed(point: EntryPoint) -> bool:
        # A third party's commands come and go with its plugins.
        return builtin(point) or chosen is None or bool(chosen & _plugins(point))

    points = sorted(
        entry_points(group=GROUP), key=lambda p: (not builtin(p), p.dist.name if p.dist else "", p.name)
    )
    return {point.name: point for point in reversed(points) if allowed(point)}


def _plugins(point: EntryPoint) -> set[str]:
    """Names of the plugins of the distribution that a command comes from."""
    return (
        {other.name for other in point.dist.entry_points if other.group == "qformats"}
        if point.dist
        else set()
    )


def command(point: EntryPoint) -> Any:
    """Load a command of a plugin.

    Raises
    ------
    PluginLoadError
        If it cannot be imported, or is not a function.
    """
    from qformats.errors import PluginLoadError

    owner = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
    try:
        function: Callable[..., Any] = point.load()
    except Exception as error:
        raise PluginLoadError(owner, f"command {point.name!r}: {type(error).__name__}: {error}") from error
    if not callable(function):
        raise PluginLoadError(owner, f"command {point.name!r} is {function!r}, expected a function")
    app = typer.Typer(add_completion=False)
    app.command(name=point.name, cls=Command)(function)
    return typer.main.get_command(app)
