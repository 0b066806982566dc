"""The base's predictions, kept in a file: 16 bits per token of the vocabulary, read and checked by window.

A row holds the natural logarithms of the next token's probabilities. It is stored as its highest value, its depth, and
for each token how far it is below the highest, as the square root of its share of the depth: finer steps for likelier
tokens. What statistics need exactly is stored beside it. When read, a row is normalized again: then the divergence of a
model from itself is half the variance of the rounding, about 1e-9 nats; without normalizing, about 1e-4.

The file: a line with its name and version, the length of the header (8 bytes, little endian), the header (JSON: what
was run, and the file's dimensions) and its checksum, then one block per window, each with its checksum (xxh3-128).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from qformats.errors import CheckpointError, OutputError
from qformats.work.writing import open_beside, put_in_place

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["LogitsReader", "LogitsWriter", "Predictions"]

_MAGIC = b"qformats logits 1\n"
_LONGEST_HEADER = 1 << 20
_DIGEST = 16
_DEPTH = 64.0
"""Nats below the highest value at which values are cut off: no vocabulary has so many tokens that it would matter."""
_STEPS = 65535


@dataclass(frozen=True)
class Predictions:
    """What a model predicts at some positions.

    Attributes
    ----------
    rows : ndarray
        float64, ``(R, 4)``: highest log-probability, depth (nats from the highest to the lowest), log-probability of
        the actual next token, and id of the most probable token.
    steps : ndarray
        uint16, ``(R, V)``: 65535 times the square root of the share of the depth at which each token lies.
    """

    rows: NDArray[np.float64]
    steps: NDArray[np.uint16]

    @classmethod
    def of(cls, log_probs: Tensor, targets: Tensor) -> Predictions:
        """Round log-probabilities.

        Parameters
        ----------
        log_probs : Tensor
            float64, ``(R, V)``; may hold minus infinity.
        targets : Tensor
            int64, ``(R,)``: ids of the actual next tokens.
        """
        import torch

        high, top = log_probs.max(1)
        low = torch.maximum(log_probs.min(1).values, high - _DEPTH)
        # A row of equal values has no depth.
        depth = (high - low).clamp_min(torch.finfo(torch.float64).tiny)
        share = ((high[:, None] - log_probs) / depth[:, None]).clamp_(0, 1)
        steps = share.sqrt_().mul_(_STEPS).round_()
        exact = log_probs.gather(1, targets[:, None])[:, 0]
        rows = torch.stack([high, depth, exact, top.double()], 1)
        return cls(rows.cpu().numpy(), steps.to(torch.int32).cpu().numpy().astype(np.uint16))

    @property
    def loss(self) -> NDArray[np.float64]:
        """Negative log-likelihood of the actual next tokens, ``(R,)``, nats."""
        return -self.rows[:, 2]

    def log_probs(self, start: int, stop: int, device: torch.device) -> Tensor:
        """Log-probabilities of rows ``[start, stop)``, float64, normalized."""
        import torch

        steps = torch.from_numpy(self.steps[start:stop].astype(np.int32)).to(device)
        depth = torch.tensor(self.rows[start:stop, 1:2], device=device)
        return torch.log_softmax(-depth * (steps.double() / _STEPS).square(), -1)

    def top(self, start: int, stop: int, device: torch.device) -> Tensor:
        """Ids of the most probable tokens of rows ``[start, stop)``, int64."""
        import torch

        return torch.from_numpy(self.rows[start:stop, 3].astype(np.int64)).to(device)

    def to_bytes(self) -> bytes:
        """Content of a block."""
        return self.rows.tobytes() + self.steps.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes, rows: int, vocabulary: int) -> Predictions:
        """Predictions of a block."""
        return cls(
            np.frombuffer(data, np.float64, rows * 4).reshape(rows, 4),
            np.frombuffer(data, np.uint16, offset=rows * 4 * 8).reshape(rows, vocabulary),
        )


def _block_bytes(rows: int, vocabulary: int) -> int:
    return rows * (4 * 8 + vocabulary * 2) + _DIGEST


class LogitsWriter:
    """Writes predictions window by window; the file appears when all are written.

    Parameters
    ----------
    path : Path
        File to make.
    identity : mapping
        What was run, as JSON.
    windows, rows : int
        Blocks that will be written, and positions in each.

    Raises
    ------
    OutputError
        If the place cannot be written.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], windows: int, rows: int) -> None:
        self.path, self._identity = path, dict(identity)
        self._windows, self._rows = windows, rows
        self._written = 0
        with self._reported():
            self._partial, self._file = open_beside(path)

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            hint = "Name a file on another disk, or score fewer windows"
            found = f"the base's predictions cannot be written ({error.strerror or error})"
            raise OutputError(self.path, found, hint) from error

    def __enter__(self) -> LogitsWriter:
        return self

    def add(self, predictions: Predictions) -> None:
        """Write a window.

        Raises
        ------
        OutputError
            If the disk is full or fails.
        """
        with self._reported():
            if not self._written:
                self._begin(predictions.steps.shape[1])
            data = predictions.to_bytes()
            self._file.write(data)
            self._file.write(xxhash.xxh3_128_digest(data))
        self._written += 1

    def _begin(self, vocabulary: int) -> None:
        measures = {"windows": self._windows, "rows": self._rows, "vocabulary": vocabulary}
        header = json.dumps({"identity": self._identity, **measures}).encode()
        self._file.write(_MAGIC + len(header).to_bytes(8, "little") + header)
        self._file.write(xxhash.xxh3_128_digest(header))
        self._file.flush()
        # Reserving the space now reveals a full disk before the work, not after it.
        size = self._windows * _block_bytes(self._rows, vocabulary)
        os.posix_fallocate(self._file.fileno(), self._file.tell(), size)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with self._reported():
                    put_in_place(self._partial, self._file, self.path)
        finally:
            with contextlib.suppress(OSError):
                self._file.close()
            self._partial.unlink(missing_ok=True)


class LogitsReader:
    """Reads predictions window by window.

    Parameters
    ----------
    path : Path
        File written by a :class:`LogitsWriter`.

    Raises
    ------
    CheckpointError
        If it is not one, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb")
            with contextlib.ExitStack() as stack:
                stack.callback(self._file.close)
                self._read_header()
                stack.pop_all()
        except OSError as error:
            raise CheckpointError(path, f"cannot be read ({error.strerror or error})") from error

    def _read_header(self) -> None:
        if self._file.read(len(_MAGIC)) != _MAGIC:
            hint = "Name another file; this one is not overwritten"
            raise CheckpointError(
                self.path, "is not a file of predictions", "one that --logits wrote", hint=hint
            )
        length = int.from_bytes(self._file.read(8), "little")
        header = self._file.read(min(length, _LONGEST_HEADER))
        if xxhash.xxh3_128_digest(header) != self._file.read(_DIGEST):
            raise self._damaged()
        data = json.loads(header)
        self.identity: dict[str, Any] = data["identity"]
        self.windows, self.rows, self.vocabulary = data["windows"], data["rows"], data["vocabulary"]
        size = self._file.tell() + self.windows * _block_bytes(self.rows, self.vocabulary)
        if os.fstat(self._file.fileno()).st_size != size:
            raise self._damaged()

    def _damaged(self) -> CheckpointError:
        return CheckpointError(
            self.path, "is damaged", "the file as it was written", hint="Remove it to have it written again"
        )

    def check(self, identity: Mapping[str, Any], wanted: str) -> None:
        """Refuse predictions of something else.

        Parameters
        ----------
        identity : mapping
            What would be run now, as JSON.
        wanted : str
            The same, for people.

        Raises
        ------
        CheckpointError
            Saying what differs.
        """
        now = json.loads(json.dumps(identity))
        differ = [key for key in now if self.identity.get(key) != now[key]]
        if differ:
            found = f"holds predictions for another {' and another '.join(differ)}"
            raise CheckpointError(self.path, found, wanted, hint="Remove it, or name another file")

    def __enter__(self) -> LogitsReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Predictions]:
        self._file.seek(len(_MAGIC))
        header = int.from_bytes(self._file.read(8), "little")
        self._file.seek(header + _DIGEST, os.SEEK_CUR)
        size = _block_bytes(self.rows, self.vocabulary) - _DIGEST
        for _ in range(self.windows):
            data = self._file.read(size)
            if xxhash.xxh3_128_digest(data) != self._file.read(_DIGEST):
                raise self._damaged()
            yield Predictions.from_bytes(data, self.rows, self.vocabulary)
