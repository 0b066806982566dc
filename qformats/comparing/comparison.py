"""One comparison from beginning to end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from qformats.comparing.contestant import Contestant, distinguish, in_names_of_all
from qformats.comparing.evidence import shortage
from qformats.comparing.logits import LogitsReader
from qformats.comparing.report import CompareReport
from qformats.comparing.speed import machine
from qformats.comparing.tasks.exam import Exam, exam_of, window_and_step
from qformats.comparing.tasks.task import tasks_of
from qformats.comparing.text import Tokenizer, Windows, read_text, require_window, windows_of
from qformats.comparing.trials import Trials
from qformats.comparing.weights import compare_weights
from qformats.errors import CheckpointError, ConfigError, QFormatsError, spelled
from qformats.exporting import Recipe
from qformats.exporting.recorded import require_unchanged
from qformats.folder.context import context_limit
from qformats.folder.readiness import require_class, require_tokenizer, require_weights
from qformats.interfaces.checkpoint import Checkpoint, ReplacedTensors
from qformats.numbers.dtypes import COMPUTED, torch_dtype
from qformats.registry import registry
from qformats.version import __version__
from qformats.work.pool import threads
from qformats.work.progress import Progress, Silent
from qformats.work.writing import check_place

__all__ = ["Settings", "compare", "require_text"]


@dataclass(frozen=True)
class Settings:
    """How to compare.

    Attributes
    ----------
    text : str or None
        File that behaviour is measured on, or ``"demo"``; ``None`` for weights only.
    window : int
        Tokens per window.
    windows : int or None
        Windows at most, from the beginning of the text.
    logits : Path or None
        File that keeps what the base predicts, for the next comparison with it.
    speed : bool
        Whether to measure speed and memory.
    device : str or None
        Where models run; a GPU if there is one.
    dtype : str
        Dtype that models compute in.
    workers : int or None
        Threads that compare weights.
    options : mapping of str to str
        Of the loaders.
    tasks : sequence of str
        Names of tasks that every model does.
    text_files : mapping of str to str
        Texts of tasks, by name; others are looked for in the caches of data sets.
    task_window, task_step, task_limit : int or None
        Tokens of a window of the tasks, and by how many the next one begins later; most windows and passages.
    verify : bool
        Whether every byte of a model that qformats has written is compared with its record, and not only a sample.
    """

    text: str | None = None
    window: int = 512
    windows: int | None = None
    logits: Path | None = None
    speed: bool = False
    device: str | None = None
    dtype: str = "f32"
    workers: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    tasks: Sequence[str] = ()
    text_files: Mapping[str, str] = field(default_factory=dict)
    task_window: int | None = None
    task_step: int | None = None
    task_limit: int | None = None
    verify: bool = False


def compare(
    base: Checkpoint,
    models: Sequence[Checkpoint],
    tried: Sequence[Recipe],
    settings: Settings,
    progress: Progress | None = None,
) -> CompareReport:
    """Compare models, and formats that are tried on the base, with the base; see :func:`qformats.compare`."""
    progress = progress or Silent()
    workers = threads(settings.workers)
    _require_comparable(base, models, tried, settings)
    lengths = _task_lengths(base, settings)
    tasks = tasks_of(settings.tasks, settings.text_files)
    text = None if settings.text is None else read_text(settings.text)
    if settings.logits is not None:
        check_place(settings.logits)
        if settings.logits.exists():
            # A file without predictions is refused before the work begins.
            with LogitsReader(settings.logits):
                pass
    for checkpoint in (base, *models):
        require_unchanged(checkpoint, verify=settings.verify, progress=progress, workers=workers)
    progress.start("loading torch", 0)
    from qformats.work.device import chosen_device

    device, dtype = chosen_device(settings.device), torch_dtype(settings.dtype)
    if text is not None or tasks:
        progress.start("loading Transformers, and reading the text", 0)
    windows, tokenizer = _windows(base, text, settings)
    exam = exam_of(tasks, base, lengths, settings.task_limit) if tasks else None
    with contextlib.ExitStack() as stack:
        everyone = [Contestant(model.name, model, model.container) for model in (base, *models)]
        for recipe in tried:
            checkpoint = stack.enter_context(_tried(base, recipe, settings.options, progress))
            container = recipe.loader(base).name
            usual = registry().packer(recipe.format).default_quantizer
            how = "" if recipe.quantizer == usual else f" ({recipe.quantizer})"
            everyone.append(Contestant(recipe.format + how, checkpoint, container, recipe.quantizer))
        distinguish(everyone)
        for model in everyone[1:]:
            model.note_differences(base)
        named = zip((m.name for m in everyone), in_names_of_all(everyone), strict=True)
        outcome = compare_weights(list(named), workers, progress)
        trials = Trials(
            everyone,
            windows,
            tokenizer,
            exam=exam,
            logits=settings.logits,
            timed=settings.speed,
            device=device,
            dtype=dtype,
            options=settings.options,
            progress=progress,
        )
        notes = (*_notes(windows, exam), *trials.carry_out())
        results = [
            model.result(weights, said)
            for model, weights, said in zip(
                everyone, (None, *outcome.results), ((), *outcome.notes), strict=True
            )
        ]
    return CompareReport(
        base=results[0],
        models=tuple(results[1:]),
        text=None if windows is None else windows.text,
        machine=machine(workers),
        identical=outcome.identical,
        notes=notes,
        version=__version__,
        tasks=() if exam is None else exam.used,
    )


def require_text(base: Checkpoint, settings: Settings) -> None:
    """Refuse a text that a model and others made from it could not be run on.

    Parameters
    ----------
    base : Checkpoint
        The model.
    settings : Settings
        With a text.

    Raises
    ------
    QFormatsError
        As a comparison would.
    """
    _require_comparable(base, [base], [], settings)
    assert settings.text is not None
    _windows(base, read_text(settings.text), settings)


@contextlib.contextmanager
def _tried(
    base: Checkpoint, recipe: Recipe, options: Mapping[str, str], progress: Progress
) -> Iterator[Checkpoint]:
    """The base in another format; it is not in any named file."""
    from qformats.exporting.on_read import quantized_on_read

    with quantized_on_read(base, recipe, options, progress) as found:
        if isinstance(found, ReplacedTensors):
            # As if it were on disk in this format; that it is not is reported elsewhere.
            tensors = {name: replace(tensor, origin=None) for name, tensor in found.tensors.items()}
            found = ReplacedTensors(found, tensors)
        yield found


def _require_comparable(
    base: Checkpoint, models: Sequence[Checkpoint], tried: Sequence[Recipe], settings: Settings
) -> None:
    """Refuse what headers and settings already tell to be impossible, before seconds are spent on imports."""
    if not models and not tried and not settings.tasks:
        raise ConfigError("models", 0, "one or more, or formats to try" + spelled(" (--try)", " (try_)"))
    if settings.dtype not in COMPUTED:
        raise ConfigError("dtype", settings.dtype, "one of " + ", ".join(COMPUTED))
    if settings.text is None and settings.logits is not None:
        raise ConfigError("logits", str(settings.logits), spelled("a text (--text) too", "a text too"))
    for recipe in tried:
        registry().writable(recipe.format)
        registry().quantizer(recipe.quantizer, dict(recipe.quantizer_options))
    for model in (base, *models):
        require_weights(model)
    if settings.text is not None or settings.tasks:
        try:
            require_tokenizer(base)
        except QFormatsError:
            # A model that nothing runs needs no tokenizer.
            require_class(base, "run")
            raise
    if settings.text is not None:
        require_window(settings.window, context_limit(base.config))


def _task_lengths(base: Checkpoint, settings: Settings) -> tuple[int, int]:
    """Tokens of the tasks' windows, and by how many the next one begins later."""
    given = {"window": settings.task_window, "step": settings.task_step, "limit": settings.task_limit}
    for name, value in given.items():
        if value is not None and not settings.tasks:
            raise ConfigError(f"task-{name}", value, spelled("tasks (--tasks) too", "tasks too"))
        if value is not None and value < 1:
            raise ConfigError(f"task-{name}", value, "1 or more")
    limit = context_limit(base.config) if settings.tasks else None
    return window_and_step(settings.task_window, settings.task_step, limit)


def _windows(
    base: Checkpoint, text: tuple[str, str] | None, settings: Settings
) -> tuple[Windows | None, Tokenizer | None]:
    """The text in windows, and the tokenizer that made its tokens."""
    if text is None:
        return None, None
    name, content = text
    tokenizer = Tokenizer(base)
    limit = context_limit(base.config)
    windows = windows_of(content, name, tokenizer, settings.window, settings.windows, limit)
    known, highest = base.config.get("vocab_size"), int(windows.ids.max())
    if isinstance(known, int) and highest >= known:
        found = f"its tokenizer produces token {highest} from the text"
        raise CheckpointError(base.path, found, f"tokens below {known}, the size of the model's vocabulary")
    return windows, tokenizer


def _notes(windows: Windows | None, exam: Exam | None) -> tuple[str, ...]:
    if windows is None and exam is not None:
        return ()
    if windows is None:
        return (
            "Only weights are compared: give a text (--text FILE or --text demo) to compare behaviour too.",
        )
    missing = shortage(windows.text)
    return (missing,) if missing else ()
