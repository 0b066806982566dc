"""Running models over windows of a text, and comparing what they predict."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qformats.comparing.loaded import LoadedModel
from qformats.comparing.logits import LogitsReader, LogitsWriter, Predictions
from qformats.comparing.report import BehaviourResult, TokenChance, TokenChange
from qformats.comparing.statistics import behaviour_alone, behaviour_change
from qformats.comparing.text import Tokenizer, Windows
from qformats.errors import NonFiniteError
from qformats.work.progress import Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["alone", "behaviour", "predict"]

_CHUNK = 1 << 22
"""How many logits are converted to float64 at a time."""
_LEAST = -16.0
"""Nats: tokens that the base finds less likely than this do not count in a divergence."""
_WORST = 20
_TOP = 5
_BEFORE = 200
"""Characters of context in the report."""


@dataclass(frozen=True, order=True)
class _Change:
    """A position where two models differ; the larger divergence is the greater change."""

    kl: float
    window: int
    position: int
    p_base: float
    p_model: float
    top_base: tuple[tuple[int, float], ...]
    top_model: tuple[tuple[int, float], ...]


def predict(
    runner: LoadedModel, windows: Windows, writer: LogitsWriter, name: str, progress: Progress
) -> NDArray[np.float64]:
    """Run the base over the text and record its predictions.

    Returns
    -------
    ndarray
        float64, ``(N,)``: negative log-likelihood of each scored token, nats.

    Raises
    ------
    NonFiniteError
        If it gives NaN, naming the first module that does.
    OutputError
        If the disk is full.
    """
    import torch

    losses = []
    for _, ids, logits in _run(runner, windows, name, progress):
        targets = _targets(ids, windows, runner)
        parts = [
            Predictions.of(torch.log_softmax(logits[start:stop].double(), -1), targets[start:stop])
            for start, stop in _chunks(logits)
        ]
        whole = Predictions(np.concatenate([p.rows for p in parts]), np.concatenate([p.steps for p in parts]))
        writer.add(whole)
        losses.append(whole.loss)
    return np.concatenate(losses)


def alone(runner: LoadedModel, windows: Windows, name: str, progress: Progress) -> BehaviourResult:
    """What a model predicts, without a base to compare it with."""
    import torch

    losses = []
    for _, ids, logits in _run(runner, windows, name, progress):
        targets = _targets(ids, windows, runner)
        for start, stop in _chunks(logits):
            log_probs = torch.log_softmax(logits[start:stop].double(), -1)
            losses.append(-_at(log_probs, targets[start:stop]))
    return behaviour_alone(np.concatenate(losses))


def behaviour(
    runner: LoadedModel,
    windows: Windows,
    reader: LogitsReader,
    tokenizer: Tokenizer,
    name: str,
    progress: Progress,
) -> BehaviourResult:
    """What a model predicts, against what the base predicts.

    Raises
    ------
    NonFiniteError
        If it gives NaN, naming the first module that does.
    CheckpointError
        If the base's predictions are damaged.
    """
    base_losses, losses, divergences, tops = [], [], [], []
    worst: list[_Change] = []
    for (window, ids, logits), base in zip(_run(runner, windows, name, progress), reader, strict=True):
        targets = _targets(ids, windows, runner)
        base_losses.append(base.loss)
        for start, stop in _chunks(logits):
            loss, kl, same, changes = _compared(logits, base, targets, start, stop, window, windows.first + 1)
            losses.append(loss)
            divergences.append(kl)
            tops.append(same)
            worst = heapq.nlargest(_WORST, [*worst, *changes])
    return behaviour_change(
        np.concatenate(base_losses),
        np.concatenate(losses),
        np.concatenate(divergences),
        np.concatenate(tops),
        tuple(_told(change, windows, tokenizer) for change in worst),
        windows.scored,
    )


def _run(
    runner: LoadedModel, windows: Windows, name: str, progress: Progress
) -> Iterator[tuple[int, NDArray[np.int64], Tensor]]:
    """Number of each window, its ids, and the logits at its scored positions."""
    total = len(windows.ids)
    # Progress is told in characters of the text, which are about its bytes.
    progress.start(f"running {name}", windows.text.characters)
    for window, ids in enumerate(windows.ids):
        # The last position predicts a token of the next window.
        logits = runner.logits(ids, windows.scored + 1)[:-1]
        if bool((logits.isnan() | logits.isposinf()).any()):
            module = runner.first_nonfinite(ids)
            where = f"; the first module with a non-finite output is {module}" if module else ""
            raise NonFiniteError(f"{name} predicts NaN in window {window + 1} of {total}{where}")
        yield window, ids, logits
        progress.advance(windows.text.characters // total)


def _targets(ids: NDArray[np.int64], windows: Windows, runner: LoadedModel) -> Tensor:
    """Ids of the actual next tokens at the scored positions."""
    import torch

    return torch.from_numpy(ids[windows.first + 1 :]).to(runner.device)


def _chunks(logits: Tensor) -> Iterator[tuple[int, int]]:
    rows, vocabulary = logits.shape
    step = max(1, _CHUNK // vocabulary)
    return ((start, min(rows, start + step)) for start in range(0, rows, step))


def _at(log_probs: Tensor, targets: Tensor) -> NDArray[np.float64]:
    found: NDArray[np.float64] = log_probs.gather(1, targets[:, None])[:, 0].cpu().numpy()
    return found


def _compared(
    logits: Tensor, base: Predictions, targets: Tensor, start: int, stop: int, window: int, first: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_], list[_Change]]:
    """Losses, divergences, same top tokens and the worst changes of rows ``[start, stop)`` of a window.

    `first` is the position in the window of the token that row 0 predicts.
    """
    import torch

    device = logits.device
    after = torch.log_softmax(logits[start:stop].double(), -1)
    before = base.log_probs(start, stop, device)
    terms = before.exp() * (before - after)
    kl = torch.where(before > _LEAST, terms, 0.0).sum(1)
    same = after.argmax(1) == base.top(start, stop, device)
    chosen, expected = _at(after, targets[start:stop]), base.rows[start:stop, 2]
    changes = []
    for row in kl.topk(min(_WORST, len(kl))).indices.tolist():
        changes.append(
            _Change(
                kl=float(kl[row]),
                window=window,
                position=first + start + row,
                p_base=float(np.exp(expected[row])),
                p_model=float(np.exp(chosen[row])),
                top_base=_likeliest(before[row]),
                top_model=_likeliest(after[row]),
            )
        )
    return -chosen, kl.cpu().numpy(), same.cpu().numpy(), changes


def _likeliest(log_probs: Tensor) -> tuple[tuple[int, float], ...]:
    found = log_probs.topk(min(_TOP, len(log_probs)))
    return tuple(zip(found.indices.tolist(), found.values.exp().tolist(), strict=True))


def _told(change: _Change, windows: Windows, tokenizer: Tokenizer) -> TokenChange:
    ids = windows.ids[change.window].tolist()

    def chances(pairs: Sequence[tuple[int, float]]) -> tuple[TokenChance, ...]:
        return tuple(TokenChance(tokenizer.text([token]), chance) for token, chance in pairs)

    return TokenChange(
        window=change.window,
        position=change.position,
        before=tokenizer.text(ids[: change.position])[-_BEFORE:],
        token=tokenizer.text([ids[change.position]]),
        kl=change.kl,
        p_base=change.p_base,
        p_model=change.p_model,
        top_base=chances(change.top_base),
        top_model=chances(change.top_model),
    )
