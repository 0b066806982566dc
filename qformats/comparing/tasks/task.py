"""Tasks: what is asked for by name, with the text that belongs to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qformats.comparing.tasks.cache import cached, caches
from qformats.comparing.tasks.corpora import CORPORA, LAMBADA
from qformats.comparing.tasks.files import passages_of, text_of
from qformats.errors import CheckpointError, ConfigError, Described

__all__ = ["Task", "tasks_of"]


@dataclass(frozen=True)
class Task:
    """A task and its text.

    Attributes
    ----------
    name, title : str
        What users and people call it.
    source : str
        Where the text came from.
    text : str
        For a perplexity; empty where words are asked for.
    passages : tuple of (str, str)
        Passages and the last word of each, where words are asked for.
    """

    name: str
    title: str
    source: str
    text: str = ""
    passages: tuple[tuple[str, str], ...] = ()

    @property
    def asks(self) -> bool:
        """Whether it asks for words."""
        return bool(self.passages)

    @property
    def characters(self) -> int:
        """Length of all that is read."""
        return len(self.text) + sum(len(context) + len(word) for context, word in self.passages)


def tasks_of(names: Sequence[str], files: Mapping[str, str]) -> list[Task]:
    """Read the texts of tasks.

    Parameters
    ----------
    names : sequence of str
        ``lambada``, ``wikitext2``, ``wikitext103``, ``ptb``, or any other name that `files` has a text for.
    files : mapping of str to str
        Texts by name of the task; others are looked for in the caches of data sets.

    Raises
    ------
    ConfigError
        If a task is not known, is named twice, or its text is not found; if a file belongs to no task.
    CheckpointError
        If a file cannot be read, or is empty.
    BackendUnavailableError
        If pyarrow is needed and missing.
    """
    known = ", ".join(CORPORA)
    for name in files:
        if name not in names:
            raise ConfigError(
                "text-file", name, "one of the tasks", f"Add it: --tasks {','.join([*names, name])}"
            )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError("tasks", twice, "each task once")
    chosen = {}
    # What is missing is said before anything is read.
    for name in names:
        if name in files:
            file = Path(files[name]).expanduser()
            if not file.is_file():
                what = "is a folder" if file.is_dir() else "does not exist"
                raise CheckpointError(file, what, f"the text of {name}")
            chosen[name] = [file]
        elif name in CORPORA:
            chosen[name] = _cached(name)
        else:
            raise ConfigError("tasks", name, known, f"For a text of your own add --text-file {name}=FILE")
    return [_task(name, found) for name, found in chosen.items()]


def _cached(name: str) -> list[Path]:
    corpus = CORPORA[name]
    for data_set in corpus.data_sets:
        found = cached(data_set)
        if found:
            return found
    sets = ", ".join(dict.fromkeys(each.name for each in corpus.data_sets))
    found_in = Described(f"no text of {corpus.title} in {caches()[0]} and {caches()[1]}")
    hint = f"Give the text (--text-file {name}=FILE); nothing is downloaded"
    raise ConfigError(f"tasks {name}", found_in, f"the test split of {sets}", hint)


def _task(name: str, files: list[Path]) -> Task:
    title = CORPORA[name].title if name in CORPORA else name
    source = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    if name == LAMBADA:
        passages = tuple(passages_of(files))
        if not passages:
            raise CheckpointError(files[0], "has no passages", "one passage a line")
        return Task(name, title, source, passages=passages)
    text = text_of(files)
    if not text.strip():
        raise CheckpointError(files[0], "has no words", f"the text of {title}")
    return Task(name, title, source, text=text)
