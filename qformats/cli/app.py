"""The program: its commands, and how errors are reported."""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterable
from io import TextIOWrapper
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from qformats.cli.bench import bench
from qformats.cli.chat import chat
from qformats.cli.check import EXIT_FAILED, check
from qformats.cli.compare import compare
from qformats.cli.completion import VARIABLE, completion
from qformats.cli.console import Talk, harmless, talk
from qformats.cli.declared import WithDeclaredOptions, command, commands
from qformats.cli.export import export
from qformats.cli.formats import formats
from qformats.cli.generate import generate
from qformats.cli.imatrix import imatrix
from qformats.cli.inspect import inspect
from qformats.cli.interruption import interrupted_code
from qformats.cli.merge import merge
from qformats.cli.new_plugin import new_plugin
from qformats.cli.outliers import outliers
from qformats.cli.plugins import plugins
from qformats.cli.serve import serve
from qformats.cli.shared import Command, Debug, Quiet, Verbose, without_values
from qformats.cli.suggestions import WrongCommandLine, commands_instead, unknown_command, unknown_option
from qformats.cli.verify import verify

if TYPE_CHECKING:
    from qformats.errors import QFormatsError

__all__ = ["app", "run"]

EXIT_USAGE = 2
EXIT_INPUT = 3
EXIT_OUTPUT = 4
EXIT_FAULT = 70
"""What no part of qformats foresaw; sysexits.h calls it an internal software error."""
_PLUGINS = "Commands of plugins"
_LONGEST = 400
"""Characters of a foreign exception's text that a message repeats."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Interrupted(Exception):
    """Ctrl-C or SIGTERM, in a shape that typer lets through; its text says what happened to the target."""


class Program(TyperGroup):
    """The group of all commands."""

    def get_params(self, ctx: Any) -> list[Any]:
        """What stands before the command."""
        return without_values(super().get_params(ctx))

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        from qformats.errors import on_the_command_line
        from qformats.work.faults import on_shrunk_file

        on_shrunk_file(EXIT_INPUT, _say)
        try:
            with on_the_command_line():
                return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted(*(error.args or self._unchanged(ctx))) from error

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what stands before the command."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            # Without a command, the help is shown.
            if not hasattr(error, "option_name"):
                raise
            known = [spelled for each in self.get_params(ctx) for spelled in each.opts]
            raise unknown_option(str(error.option_name), known, sys.argv[1:]) from error

    def _unchanged(self, ctx: Any) -> tuple[str, ...]:
        """What an interruption means to the target of a command that has one."""
        chosen = self.get_command(ctx, ctx.invoked_subcommand or "")
        writes = chosen is not None and any(each.name == "output" for each in chosen.params)
        return ("the target is unchanged",) if writes else ()

    def get_command(self, ctx: Any, name: str) -> Any:
        """One of our own commands, or a plugin's."""
        found = super().get_command(ctx, name)
        if found is None and name in (known := commands()):
            return command(known[name])
        return found

    def list_commands(self, ctx: Any) -> list[str]:
        """Our own commands; for a shell that completes, also those of plugins."""
        own: list[str] = super().list_commands(ctx)
        return [*own, *commands()] if ctx.resilient_parsing else own

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find a command; one that other programs have is answered with ours."""
        if (
            args
            and not (args[0].startswith("-") or ctx.resilient_parsing)
            and self.get_command(ctx, args[0]) is None
        ):
            raise unknown_command(args[0], args[1:], [*self.list_commands(ctx), *commands()])
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """List plugins' commands below our own; their own help describes them, so nothing is imported here."""
        known = ", ".join(sorted(commands()))
        if known and _PLUGINS not in str(self.epilog):
            self.epilog = f"{_PLUGINS}: {known} (qformats NAME --help).\n\n{self.epilog}"
        super().format_help(ctx, formatter)


app = typer.Typer(
    name="qformats",
    cls=Program,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog=(
        f"Exit codes: 0 done, {EXIT_FAILED} a check failed, 2 wrong command line, 3 unusable model, "
        "4 target not writable, 70 a fault of qformats, 130 interrupted, 143 ended by SIGTERM. "
        "NO_COLOR=1 switches colours off."
    ),
)
app.command(cls=WithDeclaredOptions)(export)
app.command(cls=Command)(generate)
app.command(cls=Command)(chat)
app.command(cls=Command)(serve)
app.command(cls=Command)(compare)
app.command(cls=Command)(bench)
app.command(cls=Command)(inspect)
app.command(cls=Command)(formats)
app.command(cls=Command)(plugins)
app.command(cls=Command)(merge)
app.command(cls=Command)(imatrix)
app.command(cls=Command)(outliers)
app.command(cls=Command)(verify)
app.command(cls=Command)(check)
app.command(name="new-plugin", cls=Command)(new_plugin)
app.command(cls=Command)(completion)


def _version(asked: bool) -> None:
    if asked:
        import qformats

        print(f"qformats {qformats.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Quantized LLM weights: any format into any other.

    qformats export demo --format gguf:q4_0 -o demo.gguf
    qformats generate demo.gguf "Once upon a time" -n 40
    qformats compare demo demo.gguf --text demo --windows 4
    qformats inspect demo.gguf

    demo is the model that comes with qformats; a model of yours is a folder, a file or a hub id.
    """


def run() -> None:
    """Run the program, and turn every expected error into one line and an exit code."""
    warnings.showwarning = _warn
    # Libraries log about themselves, such as which of their kernels they could not fetch: nothing a user can act on.
    if not logging.getLogger().handlers:
        logging.getLogger().addHandler(logging.NullHandler())
    vars(talk).update(vars(Talk()))
    for stream in (sys.stdout, sys.stderr):
        # File names and tensor names may hold characters that the terminal's encoding lacks.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if VARIABLE in os.environ:
        # A shell asks for completions; this registers the shells.
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()
    try:
        app(prog_name="qformats")
    except Interrupted as error:
        _say("; ".join(filter(None, ("interrupted", str(error)))))
        sys.exit(interrupted_code())
    except WrongCommandLine as error:
        _say(str(error), error.instead)
        sys.exit(EXIT_USAGE)
    except Exception as error:
        # Imported late: only a failing run needs to know the error family.
        from qformats.errors import QFormatsError

        if talk.debugging:
            traceback.print_exception(error)
        if isinstance(error, QFormatsError):
            _say(str(error), _instead(error))
            sys.exit(_code(error))
        if isinstance(error, OSError):
            _say(_told(error))
            sys.exit(EXIT_OUTPUT if error.errno in _FULL else EXIT_INPUT)
        if isinstance(error, MemoryError):
            _say("not enough memory. Try fewer threads with --threads")
            sys.exit(EXIT_INPUT)
        told = " ".join(str(error).split())
        raised = f"{type(error).__name__}{': ' if told else ''}{told[:_LONGEST]}"
        _say(f"a fault of qformats itself: {raised}. Please report it; qformats --debug shows the traceback.")
        sys.exit(EXIT_FAULT)


def _say(message: str, instead: Iterable[str] = ()) -> None:
    """Print a message, and command lines to type instead, each on a line of its own to be copied."""
    print(f"qformats: {harmless(message)}", file=sys.stderr)
    for line in instead:
        print(f"  {harmless(line)}", file=sys.stderr)


def _instead(error: QFormatsError) -> list[str]:
    """Command lines with other formats than the one that the error is about; all of those that it may mean."""
    from qformats.errors import AmbiguousFormatError

    name = getattr(error, "name", None) or getattr(error, "value", None)
    if not error.nearest or not isinstance(name, str):
        return []
    return commands_instead(
        name, error.nearest if isinstance(error, AmbiguousFormatError) else error.nearest[:1]
    )


def _told(error: OSError) -> str:
    """One sentence about an error of the operating system, which may name no file."""
    file = "" if error.filename is None else f"{error.filename}: "
    told = error.strerror or " ".join(str(error).split()) or type(error).__name__
    # Python's message if no folder accepts a temporary file.
    no_room = error.errno in _FULL or "temporary directory" in told
    hint = ". Free some space, or set TMPDIR to a folder with room for temporary files" if no_room else ""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        hint = ". Allow more open files: ulimit -n 4096"
    return f"{file}{told}{hint}"


def _code(error: Exception) -> int:
    from qformats import errors

    if isinstance(error, errors.OutputError):
        return EXIT_OUTPUT
    # The key of a value that stands in a file begins with the file's name: then the model is at fault.
    if isinstance(error, errors.ConfigError) and ": " in error.key:
        return EXIT_INPUT
    if isinstance(error, errors.ConfigError | errors.UnknownFormatError | errors.AmbiguousFormatError):
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
