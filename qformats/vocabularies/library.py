"""The tokenizers library, which finds fault with files in ways of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike

from qformats.errors import CheckpointError, QFormatsError

__all__ = ["library_failed", "using_library"]

_LONGEST = 160
"""Characters of what it says."""


def library_failed(error: BaseException) -> bool:
    """Whether an exception tells that the library could not use a file.

    It raises bare ``Exception``. Where its Rust code runs into what it takes for impossible, it raises what is not
    even one: ``except Exception`` lets that pass.

    Examples
    --------
    >>> from qformats.vocabularies import library_failed
    >>> library_failed(Exception("no entry found")), library_failed(KeyboardInterrupt())
    (True, False)
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


@contextmanager
def using_library(file: str | PathLike[str], found: str, expected: str | None = None) -> Iterator[None]:
    """Turn what the library raises inside into an error about a file.

    Parameters
    ----------
    file : path-like
        The file that it was given.
    found : str
        What is wrong then, as a clause; what it says follows in parentheses.
    expected : str, optional
        What it should have been.

    Raises
    ------
    CheckpointError
        If it fails.

    Examples
    --------
    >>> from tokenizers import Tokenizer
    >>> from qformats.errors import CheckpointError
    >>> from qformats.vocabularies import using_library
    >>> try:
    ...     with using_library("tokenizer.json", "the tokenizers library cannot use it"):
    ...         Tokenizer.from_str("{}")
    ... except CheckpointError as error:
    ...     str(error).partition(" (")[0]
    'tokenizer.json: the tokenizers library cannot use it'
    """
    try:
        yield
    except QFormatsError:
        raise
    except BaseException as error:
        if not library_failed(error):
            raise
        said = " ".join(str(error).split())[:_LONGEST]
        raise CheckpointError(file, f"{found} ({said})", expected) from error
