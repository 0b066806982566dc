"""The program: its commands, and what becomes of errors."""

from __future__ import annotations

import signal
import sys
import warnings
from types import FrameType
from typing import Annotated, Any

import typer

from qformats.cli.export import export
from qformats.cli.formats import formats
from qformats.cli.inspect import inspect
from qformats.cli.plugins import plugins

__all__ = ["app", "run"]

EXIT_USAGE = 2
EXIT_INPUT = 3
EXIT_OUTPUT = 4
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="qformats",
    help="Quantized LLM weights: any format into any other.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog=(
        "Exit codes: 0 done, 2 wrong command line, 3 unusable model, 4 unwritable target, 130 interrupted. "
        "NO_COLOR=1 switches colours off."
    ),
)
app.command()(export)
app.command()(inspect)
app.command()(formats)
app.command()(plugins)


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
) -> None:
    """Quantized LLM weights: any format into any other."""


def run() -> None:
    """Run the program, and turn every expected error into one line and an exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    warnings.showwarning = _warn
    # Imported late: only a failing run needs to know the error family.
    try:
        app()
    except KeyboardInterrupt:
        print("qformats: interrupted; nothing was left behind", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        from qformats.errors import QFormatsError

        if not isinstance(error, QFormatsError):
            raise
        print(f"qformats: {error}", file=sys.stderr)
        sys.exit(_code(error))


def _code(error: Exception) -> int:
    from qformats import errors

    if isinstance(error, errors.OutputError):
        return EXIT_OUTPUT
    if isinstance(error, errors.ConfigError | errors.UnknownFormatError):
        return EXIT_USAGE
    return EXIT_INPUT


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _warn(message: Warning | str, category: type[Warning], *rest: Any) -> None:
    print(f"qformats: warning: {message}", file=sys.stderr)
