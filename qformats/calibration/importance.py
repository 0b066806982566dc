"""The importance matrix of a model: its inputs' squares, from one pass over a text, block by block."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qformats.calibration.activations import Activations, Memory
from qformats.calibration.text import check_name, chunks_of
from qformats.errors import ConfigError, NonFiniteError
from qformats.exporting.recorded import require_unchanged
from qformats.interfaces.checkpoint import Checkpoint
from qformats.interfaces.importance import ColumnSums, Importance
from qformats.numbers.dtypes import torch_dtype
from qformats.work.gpus import require_device
from qformats.work.memory import return_freed
from qformats.work.progress import Progress, Silent

if TYPE_CHECKING:
    from torch import Tensor

    from qformats.calibration.inputs import InputSums
    from qformats.calibration.skeleton import Skeleton

__all__ = ["INCLUDED", "measure_importance", "run_inputs"]

INCLUDED = "the calibration text that comes with qformats"

_BATCH_TOKENS = 2048
"""Tokens that run through a block at a time, as in a calibration."""
_CHUNKS = 128
"""Chunks of the text that comes with the package, unless the user says how many."""


def measure_importance(
    source: Checkpoint,
    text: str = "",
    *,
    chunks: int | None = None,
    chunk_size: int = 512,
    device: str | None = None,
    compute_dtype: str = "f32",
    activation_memory: int = 2 * 10**9,
    verify: bool = False,
    progress: Progress | None = None,
) -> Importance:
    """Mean squares of the inputs of every matrix in a model's blocks, over a text: llama.cpp's importance matrix.

    One block is in memory at a time, and of the hidden states as much as `activation_memory`; the rest is on disk.

    Parameters
    ----------
    source : Checkpoint
        The model, in any format.
    text : str
        File, data set, or (empty) the text that comes with the package; see
        :func:`qformats.calibration.text.calibration_text`.
    chunks : int, optional
        Chunks at most, from the beginning of the text; by default all of a file, 256 of a data set, and 128 of the text
        that comes with the package.
    chunk_size : int
        Tokens of a chunk.
    device : str, optional
        Where to compute; a GPU if there is one.
    compute_dtype : str
        What the model runs in: ``"f32"``, ``"f16"`` or ``"bf16"``. Squares are summed in float64.
    activation_memory : int
        Bytes of hidden states that are kept in memory.
    verify : bool
        Compare every byte of a model that qformats has written with its record; by default the sizes and a sample.
    progress : Progress, optional
        Receives progress reports.

    Returns
    -------
    Importance
        By canonical name.

    Raises
    ------
    ConfigError
        If an option is not possible, or the text is shorter than a chunk.
    UnsupportedModelError
        If Transformers cannot run the model block by block.
    NonFiniteError
        If hidden states are not finite.

    Examples
    --------
    >>> import qformats
    >>> from qformats.calibration import measure_importance
    >>> found = measure_importance(qformats.open("demo"), chunks=2, chunk_size=32, device="cpu")
    >>> sums = found.sums["model.layers.0.mlp.up_proj.weight"]
    >>> found.entries, sums.squares.shape, sums.counts.tolist()
    (28, (1, 256), [64.0])
    """
    from qformats.calibration.inputs import InputSums

    sums, shape = run_inputs(
        source,
        text,
        InputSums,
        chunks=chunks,
        chunk_size=chunk_size,
        device=device,
        compute_dtype=compute_dtype,
        activation_memory=activation_memory,
        verify=verify,
        progress=progress,
    )
    return Importance(sums, datasets=(text or INCLUDED,), chunks=shape[0], chunk_size=chunk_size)


def run_inputs(
    source: Checkpoint,
    text: str,
    watch: Callable[[Any], InputSums],
    *,
    chunks: int | None,
    chunk_size: int,
    device: str | None,
    compute_dtype: str,
    activation_memory: int,
    verify: bool,
    progress: Progress | None,
) -> tuple[dict[str, ColumnSums], tuple[int, int]]:
    """Run a model over a text, block by block, with what watches each; sums by name, and how many chunks of what size.

    Arguments and errors are those of :func:`measure_importance`.
    """
    from qformats.folder.context import context_limit
    from qformats.folder.readiness import require_class, require_tokenizer

    progress = progress or Silent()
    if chunks is not None and chunks < 1:
        raise ConfigError("chunks", chunks, "1 or more")
    takes = context_limit(source.config)
    if chunk_size < 2 or (takes is not None and chunk_size > takes):
        limit = "" if takes is None else f", and at most {takes}, the model's limit"
        raise ConfigError("chunk-size", chunk_size, f"2 tokens or more{limit}")
    if compute_dtype not in ("f32", "f16", "bf16"):
        raise ConfigError("compute-dtype", compute_dtype, "f32, f16 or bf16")
    require_device(device)
    require_class(source, "measure")
    require_tokenizer(source)
    check_name(text, "text")
    if chunks is None and not text:
        chunks = _CHUNKS
    require_unchanged(source, verify=verify, progress=progress)
    progress.start("loading torch and Transformers", 0)
    import torch

    from qformats.calibration.precision import full_precision
    from qformats.calibration.skeleton import Skeleton
    from qformats.work.device import chosen_device

    with torch.inference_mode(), full_precision():
        skeleton = Skeleton(source, torch_dtype(compute_dtype), chosen_device(device), experts_apart=True)
        progress.start("reading the text", 0)
        tokens = chunks_of(source, text, chunk_size, chunks)
        with tempfile.TemporaryDirectory(prefix="qformats-") as work:
            states = Activations(Path(work, "states"), Memory(activation_memory))
            sums = dict(_sums(skeleton, tokens, states, progress, watch))
    return sums, (int(tokens.shape[0]), chunk_size)


def _sums(
    skeleton: Skeleton,
    tokens: Tensor,
    states: Activations,
    progress: Progress,
    watch: Callable[[Any], InputSums],
) -> Iterator[tuple[str, ColumnSums]]:
    from qformats.calibration.stream import Stream

    progress.start("embedding the text", 0)
    arguments = []
    size = max(1, _BATCH_TOKENS // tokens.shape[1])
    with skeleton.loading_on_use():
        for index, (hidden, given) in enumerate(skeleton.batches(tokens, size)):
            states.put(index, hidden)
            arguments.append(given)
    missed: list[str] = []
    transposed: list[str] = []
    for number, block in enumerate(skeleton.blocks):
        progress.start(f"block {number + 1} of {len(skeleton.blocks)}", len(states))
        skeleton.load_block(number)
        stream = Stream(block, states, [each[number] for each in arguments], Memory(0), skeleton.device)
        watched = watch(block)
        for index in range(len(states)):
            with watched:
                output = stream.run(index)
            states.put(index, output)
            progress.advance(1)
        missed += [skeleton.name(number, name) for name in watched.missed if not name.endswith("bias")]
        yield from _by_tensor(skeleton, number, watched, transposed)
        skeleton.free_block(number)
        return_freed()
    for names, why in (
        (missed, "this text does not reach"),
        (transposed, "is stored with its inputs in rows, for which no format has an importance"),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            progress.notice(f"no entry for what {why}: {', '.join(names[:3])}{more}")


def _by_tensor(
    skeleton: Skeleton, number: int, watch: InputSums, transposed: list[str]
) -> Iterator[tuple[str, ColumnSums]]:
    """Sums by canonical name: experts that are stored one by one get one each."""
    import numpy as np

    for local, sums in watch.found():
        name = skeleton.name(number, local)
        bad = int((~np.isfinite(sums.squares)).sum())
        if bad:
            found = f"{bad} of the inputs of {name} are not finite in {skeleton.dtype}"
            raise NonFiniteError(found, "run the model in f32 (compute-dtype f32)")
        for canonical, place in skeleton.stored(name):
            if not skeleton.takes(canonical, sums.squares.shape[1]):
                transposed.append(canonical)
                continue
            yield canonical, sums if place.expert is None else sums.matrix(place.expert)
