"""Running every model of a comparison, one at a time in memory."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from qformats.comparing.behaviour import alone, behaviour, predict
from qformats.comparing.contestant import Contestant
from qformats.comparing.loaded import LoadedModel
from qformats.comparing.logits import LogitsReader, LogitsWriter
from qformats.comparing.speed import Peak, speed
from qformats.comparing.statistics import behaviour_alone
from qformats.comparing.tasks.exam import Exam
from qformats.comparing.text import Tokenizer, Windows
from qformats.errors import BackendUnavailableError, NonFiniteError, QFormatsError, UnsupportedModelError
from qformats.interfaces.checkpoint import Checkpoint
from qformats.registry import registry
from qformats.work.files import fingerprint
from qformats.work.progress import Progress

if TYPE_CHECKING:
    import torch

__all__ = ["Trials"]

_IDS = 256
"""Tokens to time a model with if there is no text."""


class Trials:
    """The runs of a comparison.

    Parameters
    ----------
    models : sequence of Contestant
        The base first. Their results and notes are filled in.
    windows : Windows or None
        The text; ``None`` if only speed is measured.
    tokenizer : Tokenizer or None
        The base's, with a text.
    exam : Exam or None
        Tasks that every model does.
    logits : Path or None
        File that keeps what the base predicts.
    timed : bool
        Whether to measure speed and memory.
    device : torch.device
        Where models run.
    dtype : torch.dtype
        What they compute in.
    options : mapping of str to str
        Of the loaders.
    progress : Progress
        Receives progress reports.
    """

    def __init__(
        self,
        models: Sequence[Contestant],
        windows: Windows | None,
        tokenizer: Tokenizer | None,
        *,
        exam: Exam | None,
        logits: Path | None,
        timed: bool,
        device: torch.device,
        dtype: torch.dtype,
        options: Mapping[str, str],
        progress: Progress,
    ) -> None:
        self._models, self._windows, self._tokenizer = models, windows, tokenizer
        self._exam, self._logits, self._timed = exam, logits, timed
        self._device, self._dtype, self._options, self._progress = device, dtype, options, progress

    def carry_out(self) -> list[str]:
        """Run all models; notes about all of them together.

        Raises
        ------
        NonFiniteError
            If the base gives NaN, naming the first module that does.
        BackendUnavailableError
            If the base fails while it runs.
        CheckpointError
            If the file of predictions holds those of something else, or is damaged.
        OutputError
            If predictions cannot be written.
        """
        base, *others = self._models
        if self._windows is None:
            for model in self._models:
                self._run(model, None)
            return []
        with tempfile.TemporaryDirectory(prefix="qformats-compare-") as folder:
            path = self._logits or Path(folder, "predictions")
            if not self._predictions(base, self._windows, path):
                for model in others if self._exam is not None else ():
                    self._run(model, None)
                return ["The base cannot be run, so behaviour is not compared."]
            with LogitsReader(path) as reader:
                for model in others:
                    fits = self._same_tokens(base, model) and self._takes_a_window(model)
                    self._run(model, reader if fits else None)
        return []

    def _predictions(self, base: Contestant, windows: Windows, path: Path) -> bool:
        """Have the base's predictions in a file, from an earlier run or a new one."""
        identity = self._identity(base.checkpoint, windows)
        known = path.exists()
        if known:
            with LogitsReader(path) as reader:
                wanted = f"those of {base.checkpoint.path} on {windows.text.source}"
                reader.check(identity, wanted)
                base.behaviour = behaviour_alone(np.concatenate([part.loss for part in reader]))
            if not self._timed and self._exam is None:
                return True
        runner = self._loaded(base)
        if runner is None:
            return known
        self._examine(base, runner)
        if known:
            return True
        with (
            LogitsWriter(path, identity, len(windows.ids), windows.scored) as writer,
            runner.reported(),
        ):
            losses = predict(runner, windows, writer, base.name, self._progress)
        base.behaviour = behaviour_alone(losses)
        return True

    def _identity(self, base: Checkpoint, windows: Windows) -> dict[str, Any]:
        """What decides the base's predictions; files are identified by name, size and time of change."""
        state = base.fingerprint or fingerprint(base.files)
        # Some options say what the files do not, such as the order of rows.
        loaders = (each for each in registry().loaders() if each.name == base.container)
        decisive = {option.name for each in loaders for option in each.options if option.decides}
        return {
            "model": [[Path(path).name, size, changed] for path, _, _, size, changed, _ in state],
            "text or tokenizer": xxhash.xxh3_128_hexdigest(windows.ids.tobytes()),
            "window": int(windows.ids.shape[1]),
            "dtype": str(self._dtype).removeprefix("torch."),
            "loader option": {
                name: value for name, value in sorted(self._options.items()) if name in decisive
            },
        }

    def _same_tokens(self, base: Contestant, model: Contestant) -> bool:
        """Whether a model reads the text as the base does; its notes say if not."""
        content = model.checkpoint.tokenizer_files()
        if content == base.checkpoint.tokenizer_files():
            return True
        if not content:
            model.notes.append("It has no tokenizer, so the base's is used.")
            return True
        assert self._windows is not None
        try:
            differ = self._windows.difference(Tokenizer(model.checkpoint))
        except QFormatsError as error:
            model.notes.append(f"Its tokenizer cannot be used, so the base's is: {error}")
            return True
        if differ is not None:
            model.notes.append(
                f"Its tokenizer splits the text differently from token {differ} on, so its predictions cannot be "
                "compared."
            )
        return differ is None

    def _takes_a_window(self, model: Contestant) -> bool:
        """Whether a model was made for as many tokens as a window has; its notes say if not."""
        from qformats.folder.context import context_limit

        assert self._windows is not None
        try:
            limit = context_limit(model.checkpoint.config)
        except UnsupportedModelError as error:
            model.notes.append(f"It cannot be run: {error}")
            return False
        length = self._windows.text.window_length
        if limit is None or length <= limit:
            return True
        model.notes.append(
            f"It takes at most {limit} tokens and a window has {length}, so it is not run. Use shorter windows "
            f"(--window {limit})."
        )
        return False

    def _run(self, model: Contestant, reader: LogitsReader | None) -> None:
        """Run one model, if there is anything to find out; without predictions of the base, it is not compared."""
        if reader is None and not self._timed and self._exam is None:
            return
        runner = self._loaded(model)
        if runner is None:
            return
        self._examine(model, runner)
        if reader is None:
            return
        windows, tokenizer = self._windows, self._tokenizer
        assert windows is not None
        assert tokenizer is not None
        known = runner.vocabulary
        if known <= windows.ids.max():
            model.notes.append(
                f"It knows {known} tokens, but the text has token {windows.ids.max()}, so it is not run."
            )
            return
        try:
            with runner.reported():
                width = runner.logits(windows.ids[0, : max(1, len(runner.prefix))], 1).shape[1]
                if width != reader.vocabulary:
                    model.notes.append(
                        f"It chooses among {width} tokens, the base among {reader.vocabulary}, so their predictions "
                        "are not compared."
                    )
                    model.behaviour = alone(runner, windows, model.name, self._progress)
                else:
                    model.behaviour = behaviour(
                        runner, windows, reader, tokenizer, model.name, self._progress
                    )
        except (NonFiniteError, BackendUnavailableError) as error:
            # One broken model must not cost the others.
            model.notes.append(f"Its behaviour is not known: {error}")

    def _examine(self, model: Contestant, runner: LoadedModel) -> None:
        if self._exam is not None:
            self._exam.take(model, self._models[0].checkpoint, runner, self._progress)

    def _loaded(self, model: Contestant) -> LoadedModel | None:
        """Load a model and time it if asked; ``None``, with a note, if it cannot be run."""
        # Whatever ran before is gone by now; its memory is needed.
        gc.collect()
        peak = Peak(self._device)
        start = time.perf_counter()
        try:
            self._progress.start(f"loading {model.name}", 0)
            runner = LoadedModel(model.checkpoint, self._device, self._dtype)
        except QFormatsError as error:
            model.notes.append(f"It cannot be run: {error}")
            return None
        if self._timed:
            seconds = time.perf_counter() - start
            try:
                model.speed = speed(runner, self._ids(runner), seconds, peak)
            except BackendUnavailableError as error:
                model.notes.append(f"Its speed is not known: {error}")
        return runner

    def _ids(self, runner: LoadedModel) -> Any:
        """A text to read, of tokens that the model knows."""
        ids = np.arange(_IDS, dtype=np.int64) if self._windows is None else self._windows.ids[0]
        ids = ids % runner.vocabulary
        ids[: len(runner.prefix)] = runner.prefix
        return ids
