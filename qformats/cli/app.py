"""The program: its commands, and how errors are reported."""

from __future__ import annotations

import errno
import sys
import traceback
import warnings
from io import TextIOWrapper
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from qformats.cli.check import EXIT_FAILED, check
from qformats.cli.compare import compare
from qformats.cli.declared import WithDeclaredOptions, command, commands
from qformats.cli.export import export
from qformats.cli.formats import formats
from qformats.cli.generate import generate
from qformats.cli.inspect import inspect
from qformats.cli.new_plugin import new_plugin
from qformats.cli.plugins import plugins

__all__ = ["app", "run"]

EXIT_USAGE = 2
EXIT_INPUT = 3
EXIT_OUTPUT = 4
EXIT_INTERRUPTED = 130
_PLUGINS = "Commands of plugins"
debugging = False
"""Whether the user asked for tracebacks."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Interrupted(Exception):
    """Ctrl-C or SIGTERM, in a shape that typer lets through; its text says what happened to the target."""


class Program(TyperGroup):
    """The group of all commands."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted(*error.args) from error

    def get_command(self, ctx: Any, name: str) -> Any:
        """One of our own commands, or a plugin's."""
        found = super().get_command(ctx, name)
        if found is None and name in (known := commands()):
            return command(known[name])
        return found

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """List plugins' commands below our own; their own help describes them, so nothing is imported here."""
        known = ", ".join(sorted(commands()))
        if known and _PLUGINS not in str(self.epilog):
            self.epilog = f"{_PLUGINS}: {known} (qformats NAME --help).\n\n{self.epilog}"
        super().format_help(ctx, formatter)


app = typer.Typer(
    name="qformats",
    cls=Program,
    help="Quantized LLM weights: any format into any other.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog=(
        f"Exit codes: 0 done, {EXIT_FAILED} a check failed, 2 wrong command line, 3 unusable model, "
        "4 target not writable, 130 interrupted. "
        "NO_COLOR=1 switches colours off."
    ),
)
app.command(cls=WithDeclaredOptions)(export)
app.command()(generate)
app.command()(compare)
app.command()(inspect)
app.command()(formats)
app.command()(plugins)
app.command()(check)
app.command(name="new-plugin")(new_plugin)


def _version(asked: bool) -> None:
    if asked:
        import qformats

        print(f"qformats {qformats.__version__}")
        raise typer.Exit


def _debug(asked: bool) -> None:
    global debugging
    debugging = asked


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", callback=_debug, help="Show tracebacks of errors too."),
    ] = False,
) -> None:
    """Quantized LLM weights: any format into any other."""


def run() -> None:
    """Run the program, and turn every expected error into one line and an exit code."""
    warnings.showwarning = _warn
    for stream in (sys.stdout, sys.stderr):
        # File names and tensor names may hold characters that the terminal's encoding lacks.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except Interrupted as error:
        _say(f"interrupted; {str(error) or 'the target is unchanged'}")
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        # Imported late: only a failing run needs to know the error family.
        from qformats.errors import QFormatsError

        if debugging:
            traceback.print_exception(error)
        if isinstance(error, QFormatsError):
            _say(str(error))
            sys.exit(_code(error))
        if isinstance(error, OSError):
            _say(_told(error))
            sys.exit(EXIT_OUTPUT if error.errno in _FULL else EXIT_INPUT)
        if isinstance(error, MemoryError):
            _say("not enough memory. Try fewer threads with --workers")
            sys.exit(EXIT_INPUT)
        raise


def _say(message: str) -> None:
    from qformats.cli.console import harmless

    print(f"qformats: {harmless(message)}", file=sys.stderr)


def _told(error: OSError) -> str:
    """One sentence about an error of the operating system, which may name no file."""
    file = "" if error.filename is None else f"{error.filename}: "
    told = error.strerror or " ".join(str(error).split()) or type(error).__name__
    # Python's message if no folder accepts a temporary file.
    no_room = error.errno in _FULL or "temporary directory" in told
    hint = ". Free some space, or set TMPDIR to a folder with room for temporary files" if no_room else ""
    return f"{file}{told}{hint}"


def _code(error: Exception) -> int:
    from qformats import errors

    if isinstance(error, errors.OutputError):
        return EXIT_OUTPUT
    # The key of a value that stands in a file begins with the file's name: then the model is at fault.
    if isinstance(error, errors.ConfigError) and ": " in error.key:
        return EXIT_INPUT
    if isinstance(error, errors.ConfigError | errors.UnknownFormatError):
        return EXIT_USAGE
    return EXIT_INPUT


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _say(f"warning: {message}")
