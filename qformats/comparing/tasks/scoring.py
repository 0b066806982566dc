"""Scoring the last tokens of many sequences, several at a time, in memory that does not grow with the text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qformats.comparing.loaded import LoadedModel
from qformats.errors import NonFiniteError
from qformats.interfaces import Scored

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["TokenScores", "score"]

_TOKENS = 8192
"""Tokens of a batch at most, if it is more than one sequence."""
_PAIRS = 2048**2
"""Pairs of tokens of all sequences of a batch at most: some models keep the scores of their attention."""
_LOGITS = 1 << 26
"""Logits that are computed at a time, 256 MB in float32."""
_CHUNK = 1 << 22
"""Logits that are converted to float64 at a time."""


@dataclass(frozen=True)
class TokenScores:
    """Scores of a sequence's targets.

    Attributes
    ----------
    loss : ndarray
        float64, ``(N,)``: negative log-likelihoods, nats.
    likeliest : ndarray
        bool, ``(N,)``: whether the model finds no token more probable.
    """

    loss: NDArray[np.float64]
    likeliest: NDArray[np.bool_]


@dataclass(frozen=True)
class _Piece:
    """Some targets of a sequence, and as much of the sequence as comes before them."""

    item: int
    start: int
    ids: tuple[int, ...]
    targets: tuple[int, ...]


def score(
    runner: LoadedModel, items: Sequence[Scored], name: str, advance: Callable[[int], None]
) -> list[TokenScores]:
    """Score the targets of sequences.

    Parameters
    ----------
    runner : LoadedModel
        The model.
    items : sequence of Scored
        Sequences of any lengths.
    name : str
        The model's, for messages.
    advance : callable
        Told how many targets have been scored.

    Raises
    ------
    NonFiniteError
        If the model gives NaN.
    """
    found = [
        TokenScores(np.empty(len(item.targets)), np.empty(len(item.targets), np.bool_)) for item in items
    ]
    pieces = _pieces(items, max(1, _LOGITS // runner.vocabulary))
    for batch in _batches(pieces, runner.vocabulary, runner.keeps):
        count = max(len(piece.ids) for piece in batch) - min(len(p.ids) - len(p.targets) for p in batch)
        logits = _logits(runner, batch, count)
        for piece, rows in zip(batch, logits, strict=True):
            # Sequences begin together, and shorter ones end before the last position.
            end = count - (_length(batch) - len(piece.ids))
            scored = rows[end - len(piece.targets) : end]
            if bool((scored.isnan() | scored.isposinf()).any()):
                module = runner.first_nonfinite(np.array(piece.ids))
                where = f"; the first module with a non-finite output is {module}" if module else ""
                raise NonFiniteError(f"{name} predicts NaN{where}")
            target = slice(piece.start, piece.start + len(piece.targets))
            loss, likeliest = _scores(scored, piece.targets)
            found[piece.item].loss[target], found[piece.item].likeliest[target] = loss, likeliest
            advance(len(piece.targets))
    return found


def _length(batch: Sequence[_Piece]) -> int:
    """Tokens of the longest sequence."""
    return max(len(piece.ids) for piece in batch)


def _pieces(items: Sequence[Scored], most: int) -> Iterator[_Piece]:
    """Sequences, in pieces of at most `most` targets.

    What a target sees ends before it: so that a sequence may end there too.
    """
    for number, item in enumerate(items):
        for start in range(0, len(item.targets), most):
            targets = item.targets[start : start + most]
            end = len(item.ids) - len(item.targets) + start + len(targets)
            yield _Piece(number, start, item.ids[:end], targets)


def _batches(pieces: Iterator[_Piece], vocabulary: int, keeps: bool) -> Iterator[list[_Piece]]:
    """Pieces of similar length together; the longest first, which need the most memory.

    Some models compute logits at all positions, not only at those that are scored: `keeps` is false.
    """
    batch: list[_Piece] = []
    for piece in sorted(pieces, key=lambda piece: (-len(piece.ids), -len(piece.targets))):
        length = max(len(piece.ids), len(batch[0].ids) if batch else 0)
        unscored = min(len(each.ids) - len(each.targets) for each in (*batch, piece))
        kept = length - unscored if keeps else length
        rows = len(batch) + 1
        if batch and (
            rows * length > _TOKENS or rows * length**2 > _PAIRS or rows * kept * vocabulary > _LOGITS
        ):
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def _logits(runner: LoadedModel, batch: Sequence[_Piece], count: int) -> Tensor:
    """Logits at the last `count` positions, ``(sequences, count, V)``; padding is on the right."""
    length = _length(batch)
    ids = np.zeros((len(batch), length), np.int64)
    keep = np.zeros((len(batch), length), np.int64)
    for row, piece in enumerate(batch):
        ids[row, : len(piece.ids)] = piece.ids
        keep[row, : len(piece.ids)] = 1
    return runner.logits_of(ids, count, None if keep.all() else keep)


def _scores(logits: Tensor, targets: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    import torch

    wanted = torch.tensor(targets, device=logits.device)
    step = max(1, _CHUNK // logits.shape[1])
    losses, hits = [], []
    for start in range(0, len(targets), step):
        part, chosen = logits[start : start + step].double(), wanted[start : start + step]
        losses.append(-torch.log_softmax(part, -1).gather(1, chosen[:, None])[:, 0])
        hits.append(part.argmax(-1) == chosen)
    return torch.cat(losses).cpu().numpy(), torch.cat(hits).cpu().numpy()
