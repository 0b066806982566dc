"""Checks of which paths a loader answers to."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from qformats.interfaces import Loader, Option
from qformats.registry import registry
from qformats.testing.failure import NotApplicable, expect, reported
from qformats.testing.writing import plain_format, registered, written

__all__ = ["check_detects_its_own", "check_detects_nothing_else", "check_loader_descriptor"]


@reported
def check_loader_descriptor(loader: Loader) -> None:
    """The loader has a name, a summary, and options with names and help of their own.

    Examples
    --------
    >>> from qformats.registry import registry
    >>> from qformats.testing import check_loader_descriptor
    >>> check_loader_descriptor(registry().loader("huggingface"))
    """
    expect(loader.summary, "no summary", "one line that says what such a model is")
    dotted = not loader.suffix or (loader.suffix.startswith(".") and len(loader.suffix) > 1)
    expect(dotted, f"suffix {loader.suffix!r}", "'' for folders, or one such as '.bin'")
    names = [option.name for option in loader.options]
    expect(
        all(isinstance(option, Option) for option in loader.options),
        "options of other types",
        "Option objects",
    )
    expect(len({*names}) == len(names), f"options {', '.join(names)}", "a name of its own for each")
    for option in loader.options:
        expect(
            option.name and option.help, f"the option {option.name!r} without help", "a line that tells users"
        )
    own = loader.own_options({**dict.fromkeys(names, "x"), "an option of nobody": "x"})
    expect(own == dict.fromkeys(names, "x"), f"own_options {own}", "those that the loader declares")


@reported
def check_detects_its_own(loader: Loader, model: str | Path | None = None) -> None:
    """``detect`` answers to what the loader has written, and the registry takes this loader for it.

    `model` is exported instead of a tiny llama.

    Examples
    --------
    >>> from qformats.registry import registry
    >>> from qformats.testing import check_detects_its_own
    >>> check_detects_its_own(registry().loader("huggingface"))
    """
    registered(loader)
    with written(loader, plain_format(loader), model) as done:
        expect(
            loader.detect(done.target) is True,
            f"detect False for {done.target.name}",
            "True: it was written here",
        )
        chosen = registry().loader_for(done.target)
        expect(
            chosen is not None and chosen.name == loader.name, f"{chosen} for {done.target.name}", loader.name
        )


@reported
def check_detects_nothing_else(loader: Loader) -> None:
    """``detect`` answers neither to junk nor to what other loaders have written, and never raises.

    Examples
    --------
    >>> from qformats.registry import registry
    >>> from qformats.testing import check_detects_nothing_else
    >>> check_detects_nothing_else(registry().loader("gguf"))
    """
    with tempfile.TemporaryDirectory(prefix="qformats-check-") as scratch:
        for what, path in _junk(Path(scratch)):
            found = loader.detect(path)
            expect(found is False, f"detect {found!r} for {what}", "False")
    if loader.generic:
        # It may answer to a folder that a more particular loader knows better.
        return
    for other in registry().loaders():
        if other.name == loader.name:
            continue
        try:
            with written(other, plain_format(other)) as done:
                found = loader.detect(done.target)
                expect(found is False, f"detect {found!r} for what {other.name} has written", "False")
        except NotApplicable:
            # What it does not write, nobody can mistake.
            continue


def _junk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Paths that are not models, and what they are."""
    yield "a path where nothing is", folder / "nothing"
    for name, what, content in (
        ("empty", "an empty file", b""),
        ("byte", "a file of one byte", b"\0"),
        ("text", "a file of text", b"This is not a model.\n" * 100),
        ("noise", "a file of noise", bytes(range(256)) * 64),
        ("list.json", "a JSON list", b"[1, 2, 3]"),
        ("nested.json", "JSON of many brackets", b"[" * 5000),
    ):
        path = folder / name
        path.write_bytes(content)
        yield what, path
    empty, other = folder / "folder", folder / "other"
    empty.mkdir()
    yield "an empty folder", empty
    (other / "below").mkdir(parents=True)
    (other / "notes.txt").write_bytes(b"\xff\xfe nothing")
    yield "a folder with other files", other
