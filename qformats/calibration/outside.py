"""Weights outside a model's blocks: the token embedding in front of them, the output head behind them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from qformats.calibration.activations import Activations
from qformats.calibration.layer import Layer, Round, Rounded
from qformats.calibration.moments import Moments
from qformats.calibration.skeleton import Skeleton
from qformats.calibration.team import Team
from qformats.errors import NonFiniteError, WeightsError
from qformats.interfaces.checkpoint import Checkpoint
from qformats.interfaces.packer import PackedTensor, Packer
from qformats.interfaces.rows import stack
from qformats.numbers.quantized import QuantizedTensor
from qformats.work.progress import Progress

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Outside"]

_WEIGHTS = 1 << 25
"""Weights that are read at a time: a head is many times as large as a layer of a block."""


class Run(Protocol):
    """What a calibration knows, and does for all of its parts."""

    source: Checkpoint
    formats: Mapping[str, Packer]
    device: torch.device
    progress: Progress
    round_layers: Round
    team: Team

    def tell(self, text: str) -> None:
        """Show a notice."""

    def check_moments(self, name: str, moments: Moments) -> None:
        """Refuse inputs that are not finite."""

    def count(self, name: str, rounded: Rounded, tokens: int, seconds: float) -> None:
        """Add a layer to the error, and to the log."""

    def pack(self, layer: Layer, quantized: QuantizedTensor) -> PackedTensor:
        """Bytes of a layer."""


@dataclass(frozen=True, eq=False)
class Outside:
    """Quantizes what is not in a block, a piece of its rows at a time.

    Attributes
    ----------
    run : Run
        What is quantized, into what, and who is told.
    skeleton : Skeleton
        The model.
    """

    run: Run
    skeleton: Skeleton

    @property
    def embedding(self) -> str:
        """Name of the token embedding if it gets a new format; else empty."""
        name = self.skeleton.embedding
        return name if name in self.run.formats else ""

    @property
    def head(self) -> str:
        """Name of the output head if it gets a new format and is a matrix of its own; else empty."""
        name = self.skeleton.head
        return name if name in self.run.formats else ""

    def embedded(self) -> PackedTensor:
        """The token embedding: each token's row is used as it is, so that every column counts alike."""
        columns = self.skeleton.columns(self.embedding)
        return self._rounded(self.embedding, Moments.alone(columns, self.run.device))

    def ended(self, states: Activations, plain: Activations | None) -> PackedTensor | None:
        """The output head, by what reaches it from the quantized blocks, and from unquantized ones.

        The first process has it; the others have told what they know of its inputs.
        """
        run = self.run
        columns = self.skeleton.columns(self.head)
        moments = Moments(columns, run.device, drift=plain is not None)
        run.progress.start("running the calibration text up to the head", len(states))
        with self.skeleton.loading_on_use():
            for index in range(len(states)):
                inputs = self.skeleton.head_inputs(states.get(index).to(run.device))
                other = None
                if plain is not None:
                    other = self.skeleton.head_inputs(plain.get(index).to(run.device))
                moments.add(inputs, other)
                run.progress.advance(1)
        moments.pool(run.team)
        if not run.team.leads:
            return None
        run.check_moments(self.head, moments)
        return self._rounded(self.head, moments)

    def _rounded(self, name: str, moments: Moments) -> PackedTensor:
        run, packer = self.run, self.run.formats[name]
        stored = run.source.tensors[name]
        run.progress.start(name, stored.nbytes)
        began = time.perf_counter()
        pieces = [Layer(name, packer, partial(self._read, name, *ends)) for ends in self._pieces(name)]
        packed, loss, signal, damping = [], 0.0, 0.0, 0.0
        tokens = moments.tokens
        for layer, rounded in zip(pieces, self._results(pieces, moments), strict=True):
            packed.append(run.pack(layer, rounded.quantized))
            loss, signal, damping = loss + rounded.loss, signal + rounded.signal, rounded.damping
            run.progress.advance(stored.nbytes * packed[-1].shape[0] // max(1, stored.rows))
        if tokens:
            whole = Rounded(rounded.quantized, loss, signal, damping)
            run.count(name, whole, tokens, time.perf_counter() - began)
        return packed[0] if len(packed) == 1 else stack(stored.shape, packed)

    def _results(self, pieces: list[Layer], moments: Moments) -> Iterable[Rounded]:
        name = pieces[0].name
        try:
            yield from self.run.round_layers(pieces, moments, self.run.tell)
        except NonFiniteError as error:
            raise WeightsError(
                str(self.run.source.tensors[name].file), name, error.found, error.hint
            ) from error

    def _pieces(self, name: str) -> list[tuple[int, int]]:
        """Ranges of rows that can be read, and packed, by themselves."""
        stored = self.run.source.tensors[name]
        own = self.run.formats[name].row_step(stored.shape)
        rows = stored.rows
        if not own or not stored.step:
            return [(0, rows)]
        together = math.lcm(own, stored.step)
        step = max(1, _WEIGHTS // max(1, stored.shape[-1]) // together) * together
        return [(start, min(rows, start + step)) for start in range(0, rows, step)]

    def _read(self, name: str, start: int, stop: int) -> Tensor:
        return self.skeleton.rows(name, start, stop).to(self.run.device)
