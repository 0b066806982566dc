"""What every command has, a plugin's too: options about what is printed, and help with mistyped ones."""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from qformats.cli.console import talk
from qformats.cli.reporting import with_json_file
from qformats.cli.suggestions import unknown_option, unusable

__all__ = ["Command", "Debug", "Quiet", "Verbose", "parameters", "without_values"]


def _quiet(asked: bool) -> None:
    talk.quiet |= asked


def _verbose(asked: bool) -> None:
    talk.verbose |= asked


def _debug(asked: bool) -> None:
    talk.debugging |= asked


Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", callback=_quiet, help="Print results and errors only.", rich_help_panel="Messages"
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        callback=_verbose,
        help="Print each step with its time.",
        rich_help_panel="Messages",
    ),
]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug", callback=_debug, help="Show tracebacks of errors too.", rich_help_panel="Messages"
    ),
]


def parameters(function: Any) -> list[Any]:
    """Parameters as typer makes them from a function's signature."""
    app = typer.Typer(add_completion=False)
    app.command()(function)
    return [each for each in typer.main.get_command(app).params if each.name != "help"]


@lru_cache(maxsize=1)
def _everywhere() -> list[Any]:
    def options(quiet: Quiet = False, verbose: Verbose = False, debug: Debug = False) -> None: ...

    options.__annotations__ = {"quiet": Quiet, "verbose": Verbose, "debug": Debug, "return": None}
    found = parameters(options)
    for each in found:
        each.expose_value = False
    return found


def without_values(params: list[Any]) -> list[Any]:
    """The same parameters, of which flags show no type: they take no value, though Typer's help says ``<bool>``."""
    for each in params:
        if getattr(each, "is_flag", False) and each.metavar is None:
            each.metavar = ""
    return params


class Command(TyperCommand):
    """A command that also has ``--quiet``, ``--verbose`` and ``--debug``.

    The second paragraph of its help is an example if it is a command line of ours.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A line ends where the terminal does, not where the source did.
        paragraphs = [" ".join(text.split()) for text in (self.help or "").split("\n\n")]
        self._example = next((text for text in paragraphs if text.startswith("qformats ")), "")
        shown = (f"[bold]{text}[/bold]" if text.startswith("qformats ") else text for text in paragraphs)
        self.help = "\n\n".join(shown)

    def get_params(self, ctx: Any) -> list[Any]:
        """Parameters of the command, then the shared ones that it does not have itself."""
        own = super().get_params(ctx)
        taken = {spelled for each in own for spelled in each.opts}
        return without_values([*own, *(each for each in _everywhere() if not taken & {*each.opts})])

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line; an unknown option is answered with the command line to type instead.

        Before, ``--json`` gets its value: it is a flag or has a file, which typer's options cannot be.
        """
        try:
            return super().parse_args(ctx, with_json_file(self.get_params(ctx), args))
        except typer.Exit:
            raise
        except Exception as error:
            if not hasattr(error, "format_message"):
                raise
            name = getattr(error, "option_name", None)
            known = [spelled for each in self.get_params(ctx) for spelled in each.opts]
            if name is not None and hasattr(error, "possibilities") and name not in known:
                raise unknown_option(name, known, sys.argv[1:]) from error
            raise unusable(error, str(ctx.info_name), self._example) from error
