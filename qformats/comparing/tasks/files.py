"""Reading the text of a task: plain text, JSON lines, and the tables of data sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qformats.errors import BackendUnavailableError, CheckpointError
from qformats.work.files import parse_json

__all__ = ["passages_of", "text_of"]

_TABLES = (".parquet", ".arrow")
_COLUMNS = ("text", "sentence")
"""Names of the column with the text; PTB has sentences."""
_QUESTION, _ANSWER = "inputs_pretokenized", "targets_pretokenized"
"""Keys of a passage whose last word stands by itself, as in GLM-130B's own data."""


def text_of(files: Sequence[Path]) -> str:
    """One text of all files, as it was before a data set was made of it.

    Data sets lose what stands at the ends of lines: ``wiki.test.tokens`` and ``ptb.test.txt`` have a space at both
    ends of each, and a line without words is a space. Words are counted between spaces, so that these count.

    Parameters
    ----------
    files : sequence of Path
        Plain text (UTF-8); JSON lines, Parquet or Arrow with a column ``text`` or ``sentence``.

    Raises
    ------
    CheckpointError
        If a file cannot be read, or has no such column.
    BackendUnavailableError
        If pyarrow is needed and missing.
    """
    parts = []
    for file in files:
        if file.suffix not in (*_TABLES, ".jsonl"):
            parts.append(_plain(file))
            continue
        rows = _rows(file)
        column = _column(rows, file)
        for row in rows:
            line = _text(row, column, file)
            parts.append(line if line.endswith("\n") else f" {line} \n" if line.strip() else " \n")
    return "".join(parts)


def passages_of(files: Sequence[Path]) -> list[tuple[str, str]]:
    """Passages and the last word of each.

    Parameters
    ----------
    files : sequence of Path
        One passage a line of plain text; or JSON lines, Parquet or Arrow with a column ``text``, or with passage and
        word apart (``inputs_pretokenized`` and ``targets_pretokenized``).

    Raises
    ------
    CheckpointError
        If a file cannot be read, or a passage has fewer than two words.
    BackendUnavailableError
        If pyarrow is needed and missing.
    """
    found = []
    for file in files:
        if file.suffix not in (*_TABLES, ".jsonl"):
            lines = [line for line in _plain(file).split("\n") if line.strip()]
            found += [_parted(line, file, number) for number, line in enumerate(lines, 1)]
            continue
        rows = _rows(file)
        apart = bool(rows) and _QUESTION in rows[0] and _ANSWER in rows[0]
        column = "" if apart else _column(rows, file)
        for number, row in enumerate(rows, 1):
            if apart:
                word = row[_ANSWER]
                # Several answers may be given; the first is the book's own.
                word = word[0] if isinstance(word, list) and word else word
                text = (
                    f"{_text(row, _QUESTION, file).strip()} {_text({_ANSWER: word}, _ANSWER, file).strip()}"
                )
            else:
                text = _text(row, column, file)
            found.append(_parted(text, file, number))
    return found


def _parted(text: str, file: Path, number: int) -> tuple[str, str]:
    parts = text.strip().rsplit(maxsplit=1)
    if len(parts) < 2:
        raise CheckpointError(file, f"passage {number} has no two words", "a passage and its last word")
    return parts[0], parts[1]


def _plain(file: Path) -> str:
    try:
        # As it is: line ends are not translated.
        return file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(file, f"is not UTF-8 text ({error.reason})", "the text of a task") from error
    except OSError as error:
        raise CheckpointError(
            file, f"cannot be read ({error.strerror or error})", "the text of a task"
        ) from error


def _rows(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".jsonl":
        # A line separator of Unicode's may stand inside of a text.
        lines = _plain(file).split("\n")
        return [_object(line, file, number) for number, line in enumerate(lines, 1) if line.strip()]
    try:
        import pyarrow  # type: ignore[import-untyped, import-not-found, unused-ignore]
        from pyarrow import ipc, parquet  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError as error:
        hint = "Install it (pip install pyarrow), or give the text itself (--text-file NAME=FILE)"
        raise BackendUnavailableError(
            "pyarrow", f"is not installed, but {file.name} needs it", hint
        ) from error
    try:
        if file.suffix == ".parquet":
            return list(parquet.read_table(file).to_pylist())
        with pyarrow.memory_map(str(file)) as source:
            return list(ipc.open_stream(source).read_all().to_pylist())
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(file, f"cannot be read ({reason})", "a table of a data set") from error


def _object(line: str, file: Path, number: int) -> dict[str, Any]:
    try:
        found = parse_json(line)
    except ValueError as error:
        raise CheckpointError(file, f"line {number} is not JSON ({error})", "one object a line") from error
    if not isinstance(found, dict):
        raise CheckpointError(file, f"line {number} is not an object", "one object a line")
    return found


def _column(rows: Sequence[dict[str, Any]], file: Path) -> str:
    if not rows:
        raise CheckpointError(file, "has no rows", "the text of a task")
    for name in _COLUMNS:
        if name in rows[0]:
            return name
    has = ", ".join(rows[0]) or "none"
    raise CheckpointError(file, f"has the columns {has}", "a column " + " or ".join(_COLUMNS))


def _text(row: dict[str, Any], column: str, file: Path) -> str:
    found = row.get(column)
    if not isinstance(found, str):
        raise CheckpointError(file, f"{column} is {type(found).__name__} in a row", "text")
    return found
