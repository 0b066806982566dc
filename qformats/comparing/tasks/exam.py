"""The tasks of one comparison: every model reads the same texts, and is compared with the base where it can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from qformats.comparing.contestant import Contestant
from qformats.comparing.loaded import LoadedModel
from qformats.comparing.task_report import TaskResult, TaskUsed
from qformats.comparing.tasks.last_word import Asked, asked, right
from qformats.comparing.tasks.perplexity import Cut, cut, shortened, token_losses, words
from qformats.comparing.tasks.reading import Causal, evaluation_of
from qformats.comparing.tasks.statistics import accuracy, accuracy_change, perplexity, perplexity_change
from qformats.comparing.tasks.task import Task
from qformats.comparing.text import Tokenizer
from qformats.errors import BackendUnavailableError, ConfigError, NonFiniteError, QFormatsError
from qformats.interfaces import Checkpoint, Evaluation
from qformats.work.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Exam", "exam_of", "window_and_step"]

_WINDOW = 2048
"""Tokens of a window in GLM-130B's report; shorter where the base takes fewer."""
_STEPS = 8
"""Steps that a window has there: 2048 tokens, of which 256 are new."""
_SHORTEST = 4


@dataclass(frozen=True)
class _Sat:
    """What the base did in a task."""

    reader: Evaluation | Causal
    read: Cut | Asked
    losses: NDArray[np.float64] | None = None
    right: NDArray[np.bool_] | None = None


@dataclass
class Exam:
    """Tasks, and what the base did in them.

    Attributes
    ----------
    tasks : tuple of Task
        With as much text as is used.
    used : tuple of TaskUsed
        For the report.
    window, step : int
        Tokens of a window, and by how many the next one begins later.
    tokenizer : Tokenizer
        The base's.
    """

    tasks: tuple[Task, ...]
    used: tuple[TaskUsed, ...]
    window: int
    step: int
    tokenizer: Tokenizer
    _base: dict[str, _Sat] = field(default_factory=dict)

    def take(self, model: Contestant, base: Checkpoint, runner: LoadedModel, progress: Progress) -> None:
        """Have a model do all tasks; its results and notes are filled in.

        Raises
        ------
        NonFiniteError, BackendUnavailableError
            If the model is the base, and fails.
        """
        first = model.checkpoint is base
        tokenizer = self.tokenizer if first else self._tokenizer(model, base)
        reader = evaluation_of(model.checkpoint, tokenizer)
        for task in self.tasks:
            try:
                with runner.reported():
                    found = self._taken(task, model, runner, tokenizer, reader, first, progress)
            except (NonFiniteError, BackendUnavailableError, ConfigError) as error:
                if first:
                    raise
                # One broken model must not cost the others.
                model.notes.append(f"Its result in {task.title} is not known: {error}")
            else:
                if found is not None:
                    model.tasks[task.name] = found

    def _tokenizer(self, model: Contestant, base: Checkpoint) -> Tokenizer:
        """A model's own tokenizer: words are counted, so that models of any vocabulary can be compared."""
        content = model.checkpoint.tokenizer_files()
        if not content or content == base.tokenizer_files():
            return self.tokenizer
        try:
            return Tokenizer(model.checkpoint)
        except QFormatsError as error:
            model.notes.append(f"Its tokenizer cannot be used in tasks, so the base's is: {error}")
            return self.tokenizer

    def _taken(
        self,
        task: Task,
        model: Contestant,
        runner: LoadedModel,
        tokenizer: Tokenizer,
        reader: Evaluation | Causal,
        first: bool,
        progress: Progress,
    ) -> TaskResult | None:
        progress.start(f"running {model.name} on {task.title}", task.characters)
        read: Cut | Asked
        if task.asks:
            read = asked(task.passages, tokenizer, reader, runner.limit)
        else:
            read = cut(task.text, tokenizer, reader, self.window, self.step)
            if runner.limit is not None and read.longest > runner.limit:
                raise ConfigError("task-window", self.window, f"windows of {runner.limit} tokens at most")
        if read.highest >= runner.vocabulary:
            model.notes.append(
                f"It knows {runner.vocabulary} tokens, but {task.title} has token {read.highest}, so it is not run on "
                "it."
            )
            return None
        parts = len(read.questions) or read.tokens if isinstance(read, Asked) else read.tokens
        advance = _share(progress, task.characters, parts)
        if isinstance(read, Asked):
            answers = right(runner, read, tokenizer, reader, model.name, advance)
            sat = _Sat(reader, read, right=answers)
        else:
            sat = _Sat(reader, read, losses=token_losses(runner, read, model.name, advance))
        if first:
            self._base[task.name] = sat
        return self._result(task, model, sat, first)

    def _result(self, task: Task, model: Contestant, sat: _Sat, first: bool) -> TaskResult:
        base, against = self._base.get(task.name), None
        read = (sat.reader.name, sat.reader.summary)
        if base is not None and base.reader.name != sat.reader.name:
            model.notes.append(
                f"It reads {task.title} {sat.reader.name} and the base {base.reader.name}, so their results are not "
                "compared."
            )
            base = None
        if isinstance(sat.read, Asked):
            assert sat.right is not None
            if base is not None and not first:
                assert base.right is not None
                against = accuracy_change(base.right, sat.right)
            count = len(sat.right)
            return TaskResult(*read, accuracy(sat.right), 0.0, sat.read.tokens, count, against)
        assert sat.losses is not None
        if base is not None and not first:
            assert base.losses is not None
            if base.read == sat.read:
                against = perplexity_change(base.losses, sat.losses, sat.read.words, self.step)
            else:
                model.notes.append(
                    f"It splits {task.title} into other tokens than the base: both perplexities are per word, but "
                    "whether they differ by chance is not known."
                )
        value, loss = perplexity(sat.losses, sat.read.words, self.step)
        return TaskResult(*read, value, loss, len(sat.losses), len(sat.read.items), against)


def _share(progress: Progress, characters: int, parts: int) -> Callable[[int], None]:
    """Tell progress in characters of the text, as far as `parts` of it are done."""
    done = told = 0

    def advance(count: int) -> None:
        nonlocal done, told
        done += count
        now = characters * done // max(1, parts)
        progress.advance(now - told)
        told = now

    return advance


def window_and_step(window: int | None, step: int | None, limit: int | None) -> tuple[int, int]:
    """Tokens of a window, and by how many the next one begins later.

    Parameters
    ----------
    window : int, optional
        2048 by default, or as many as the base takes.
    step : int, optional
        An eighth of the window by default.
    limit : int or None
        Tokens that the base takes, if its configuration tells.

    Raises
    ------
    ConfigError
        If the base does not take a window, or a number makes no sense.

    Examples
    --------
    >>> window_and_step(None, None, None), window_and_step(None, None, 512)
    ((2048, 256), (512, 64))
    """
    if window is None:
        window = min(_WINDOW, limit or _WINDOW)
    if window < _SHORTEST:
        raise ConfigError("task-window", window, f"{_SHORTEST} tokens or more")
    if limit is not None and window > limit:
        raise ConfigError("task-window", window, f"at most {limit} tokens, the model's limit")
    step = max(1, window // _STEPS) if step is None else step
    if not 1 <= step < window:
        raise ConfigError("task-step", step, f"from 1 to {window - 1}, less than a window")
    return window, step


def exam_of(tasks: Sequence[Task], base: Checkpoint, lengths: tuple[int, int], most: int | None) -> Exam:
    """Tasks for a base and the models that are compared with it.

    Parameters
    ----------
    tasks : sequence of Task
        One or more.
    base : Checkpoint
        Its tokenizer decides how much of a text is used, and how it is cut.
    lengths : (int, int)
        From :func:`window_and_step`.
    most : int, optional
        Windows of a text, and passages, at most; all by default.
    """
    window, step = lengths
    tokenizer = Tokenizer(base)
    chosen, used = [], []
    for task in tasks:
        if task.asks:
            part = replace(task, passages=task.passages[:most])
        else:
            part = replace(task, text=shortened(task.text, tokenizer, window, step, most))
        chosen.append(part)
        used.append(
            TaskUsed(
                task.name,
                task.title,
                "accuracy" if task.asks else "perplexity",
                task.source,
                part.characters,
                0 if task.asks else words(part.text),
                len(part.passages),
                0 if task.asks else window,
                0 if task.asks else step,
                part != task,
            )
        )
    return Exam(tuple(chosen), tuple(used), window, step, tokenizer)
