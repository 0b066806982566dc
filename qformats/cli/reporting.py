"""``--json``: alone it reports on standard output, with a file it writes there; alike for every command.

A word after it may be its file or the command's own argument. It is the file if there is no room left for another
argument, and the argument if the command would lack one otherwise. Where both could be, as in ``compare A --json B``,
it is the file if it ends in ``.json`` or is ``-``. ``--json=FILE`` is always the file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["STDOUT", "Json", "as_json", "with_json_file"]

STDOUT = "-"
"""Standard output, as the file of an option."""
_OPTION = "--json"
_LARGEST = 1 << 26
"""Bytes of an earlier report that is looked at."""


def _checked(place: str | None) -> str | None:
    """Refuse a place before the work is done."""
    if place is None or place == STDOUT:
        return place
    from qformats.errors import ConfigError
    from qformats.work.writing import check_place

    if not place:
        raise ConfigError(_OPTION, place, "a file, or nothing for standard output")
    path = Path(place).expanduser()
    check_place(path)
    if path.exists():
        _earlier(path)
    return place


Json = Annotated[
    str | None,
    typer.Option(
        _OPTION,
        metavar="[FILE]",
        callback=_checked,
        help="Report as JSON: on standard output, or in FILE (--json=FILE unless it ends in .json).",
    ),
]
"""File of the report, :data:`STDOUT`, or ``None``; its default is ``None``."""


def as_json(data: Any, place: str | None) -> bool:
    """Report as JSON where `place` says.

    Parameters
    ----------
    data : Any
        Plain data; what JSON cannot express becomes text.
    place : str or None
        Value of ``--json``.

    Returns
    -------
    bool
        Whether it went to standard output, which then holds nothing else.

    Raises
    ------
    OutputError
        If the file cannot be written, or holds something other than an earlier report of this kind.

    Examples
    --------
    >>> from qformats.cli.reporting import as_json
    >>> as_json({"bits": 4.5}, "-")
    {
      "bits": 4.5
    }
    True
    """
    from qformats.cli.console import jsonable

    if place is None:
        return False
    plain = jsonable(data)
    if place == STDOUT:
        unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        print(json.dumps(plain, indent=2, ensure_ascii=not unicode, allow_nan=False))
        return True
    from qformats.work.writing import write_text

    path = Path(place).expanduser()
    if path.exists() and _kind(_earlier(path)) not in (None, _kind(plain)):
        raise _refused(path)
    write_text(path, json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return False


def _earlier(path: Path) -> Any:
    """What a file holds that a report may replace; ``None`` if it is empty."""
    from qformats.errors import OutputError

    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:
            raise _refused(path)
        content = path.read_bytes()
        return json.loads(content) if content else None
    except (ValueError, RecursionError):
        raise _refused(path) from None
    except OSError as error:
        raise OutputError(path, f"cannot be read ({error.strerror or error})") from error


def _kind(report: Any) -> Any:
    """What tells one kind of report from another, and from any other JSON: its keys."""
    if isinstance(report, list):
        return ("list", _kind(report[0])) if report else None
    return sorted(report) if isinstance(report, dict) else None if report is None else type(report).__name__


def _refused(path: Path) -> Exception:
    from qformats.errors import OutputError

    found = "exists already and is not an earlier JSON report of this command, so it is not replaced"
    return OutputError(path, found, "Name another file, or remove this one")


def with_json_file(params: Iterable[Any], args: Sequence[str]) -> list[str]:
    """Arguments in which every ``--json`` has its value.

    Parameters
    ----------
    params : iterable of click.Parameter
        Of the command.
    args : sequence of str
        As the user gave them.

    Examples
    --------
    >>> import typer
    >>> from qformats.cli.app import app
    >>> inspect = typer.main.get_command(app).commands["inspect"]
    >>> with_json_file(inspect.params, ["--json", "demo"])
    ['--json=-', 'demo']
    >>> with_json_file(inspect.params, ["demo", "--json", "facts.json"])
    ['demo', '--json=facts.json']
    """
    options = {name: each for each in params for name in (*each.opts, *each.secondary_opts)}
    if _OPTION not in options:
        return list(args)
    positional = [each for each in params if each.param_type_name == "argument"]
    needed = sum(each.required for each in positional)
    most = None if any(each.nargs == -1 for each in positional) else len(positional)
    others = _words(options, args)
    found: list[str] = []
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*found, word, *rest]
        if word != _OPTION:
            found.append(word)
            if rest and _takes_next(options, word):
                found.append(rest.pop(0))
            continue
        after = rest[0] if rest and (rest[0] == STDOUT or not rest[0].startswith("-")) else None
        if after is not None and _is_file(after, others, needed, most):
            found.append(f"{_OPTION}={rest.pop(0)}")
        else:
            others += after is not None
            found.append(f"{_OPTION}={STDOUT}")
    return found


def _is_file(word: str, others: int, needed: int, most: int | None) -> bool:
    """Whether a word after ``--json`` is its file, where the command has `others` as arguments without it."""
    if others < needed:
        return False
    if most is not None and others >= most:
        return True
    return word == STDOUT or word.lower().endswith(".json")


def _words(options: Mapping[str, Any], args: Sequence[str]) -> int:
    """How many arguments there are that are no option's, other than a word after ``--json``."""
    count, rest = 0, list(args)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return count + len(rest)
        if word == _OPTION:
            if rest and (rest[0] == STDOUT or not rest[0].startswith("-")):
                rest.pop(0)
        elif word.startswith("-") and word != STDOUT:
            if rest and _takes_next(options, word):
                rest.pop(0)
        else:
            count += 1
    return count


def _takes_next(options: Mapping[str, Any], word: str) -> bool:
    """Whether an option's value is the word after it."""
    if word.startswith("--"):
        option = options.get(word)
        return option is not None and not option.is_flag
    if not word.startswith("-") or word == STDOUT:
        return False
    # Of letters that are written together, the first that takes a value takes the rest.
    for i, letter in enumerate(word[1:], 2):
        option = options.get(f"-{letter}")
        if option is None:
            return False
        if not option.is_flag:
            return i == len(word)
    return False
