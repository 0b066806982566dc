"""Speed and memory of models, one after the other, without a text."""

from __future__ import annotations

import gc
import importlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qformats.comparing.report import SpeedResult
from qformats.interfaces.checkpoint import Checkpoint
from qformats.numbers.dtypes import dtype_name
from qformats.work.progress import Progress, Silent

if TYPE_CHECKING:
    import torch

    from qformats.comparing.loaded import LoadedModel

__all__ = ["BenchResult", "bench"]


@dataclass(frozen=True)
class BenchResult:
    """One model.

    Attributes
    ----------
    model : str
        What was opened.
    format : str
        ``family:variant`` of most of its weights as they are in memory, or a dtype.
    nbytes : int
        Its weights in memory.
    speed : SpeedResult
        What was measured.
    """

    model: str
    format: str
    nbytes: int
    speed: SpeedResult


def bench(
    models: Sequence[Checkpoint],
    *,
    formats: Sequence[str] = (),
    device: torch.device,
    dtype: torch.dtype | None = None,
    prompt_tokens: int = 512,
    new_tokens: int = 64,
    repeats: int = 3,
    options: Mapping[str, str] | None = None,
    verify: bool = False,
    progress: Progress | None = None,
) -> list[BenchResult]:
    """Load each model, and time it.

    Parameters
    ----------
    models : sequence of Checkpoint
        The models.
    formats : sequence of str
        What each model is quantized into while it is loaded; without any, it is loaded as it is.
    device : torch.device
        Where they run.
    dtype : torch.dtype, optional
        What they compute in; see :func:`qformats.load_model`.
    prompt_tokens, new_tokens, repeats : int
        See :func:`qformats.comparing.speed.speed`.
    options : mapping, optional
        Loader options.
    verify : bool
        Compare every byte of models that qformats has written with their records, before any is timed.
    progress : Progress, optional
        Told what goes on.

    Raises
    ------
    QFormatsError
        If a model cannot be run.

    Examples
    --------
    >>> import qformats, torch
    >>> from qformats.comparing.bench import bench
    >>> result, = bench([qformats.open("demo")], device=torch.device("cpu"), prompt_tokens=8, new_tokens=2, repeats=1)
    >>> result.format, result.speed.tokens_per_second > 0
    ('f32', True)
    """
    from qformats.comparing.loaded import LoadedModel
    from qformats.comparing.speed import Peak, speed
    from qformats.exporting.recorded import require_unchanged

    progress = progress or Silent()
    progress.start("loading Transformers", 0)
    # It takes seconds, once, and no part of loading a model.
    for module in ("models.auto.modeling_auto", "generation"):
        importlib.import_module(f"transformers.{module}")
    for source in models if verify else ():
        require_unchanged(source, verify=True, progress=progress)
    found = []
    for source in models:
        for format in formats or (None,):
            # What ran before is gone by now; its memory is needed.
            gc.collect()
            peak = Peak(device)
            start = time.perf_counter()
            runner = LoadedModel(source, device, dtype, format=format, options=options, progress=progress)
            seconds = time.perf_counter() - start
            # Any tokens will do; special ones, which are often the first, might mean something to the model.
            ids = np.random.default_rng(0).integers(runner.vocabulary // 4, runner.vocabulary, prompt_tokens)
            ids[: len(runner.prefix)] = runner.prefix
            progress.start(f"timing {source.name}", 0)
            result = speed(
                runner,
                ids,
                seconds,
                peak,
                prompt_tokens=prompt_tokens,
                new_tokens=new_tokens,
                repeats=repeats,
            )
            found.append(BenchResult(str(source.path), *_held(runner), result))
            del runner
    return found


def _held(runner: LoadedModel) -> tuple[str, int]:
    """Format of most weights, and bytes of all."""
    report = runner.model.qformats_report
    sizes: Counter[str] = Counter()
    for weight in report.weights:
        sizes[weight.format] += weight.nbytes
    format = sizes.most_common(1)[0][0] if sizes else dtype_name(runner.model.dtype)
    return format, report.nbytes
