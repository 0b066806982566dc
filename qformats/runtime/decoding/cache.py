"""Keys and values in memory that stays where it is, so that a captured step finds them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from qformats.kernels import step

__all__ = ["StepCache"]


class _Layer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's keys and values, ``(batch, heads, room, width)`` each."""

    # A window is what the attention looks at, here: nothing is overwritten.
    is_sliding = False
    is_compileable = False

    def __init__(self, owner: StepCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.owner = owner
        self.seen = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate, for the shapes that come first."""
        made = []
        # What inference mode makes cannot be written outside of it.
        with torch.inference_mode(False):
            for states in (key_states, value_states):
                batch, heads, _, width = states.shape
                shape = (batch, heads, self.owner.room, width)
                # Zeros: what is not seen is multiplied by zero, and must be finite.
                made.append(torch.zeros(shape, dtype=states.dtype, device=states.device))
        self.keys, self.values = made
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Take the keys and values of new tokens, and give those of all that are seen so far.

        In a step that is captured: everything there is room for, see :class:`StepCache`.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        if self.owner.stepping:
            step.store(key_states, value_states, self.keys, self.values, self.owner.length)
            return self.keys, self.values
        stop = self.seen + key_states.shape[-2]
        self.keys[:, :, self.seen : stop] = key_states
        self.values[:, :, self.seen : stop] = value_states
        self.seen = stop
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many keys a mask is for, and the place of the first one."""
        return self.seen + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens that were read in one go."""
        return self.seen

    def get_max_length(self) -> int:
        """Tokens there is room for."""
        return self.owner.room

    def reset(self) -> None:
        """Forget what was read."""
        self.seen = 0


class StepCache(Cache):
    """Keys and values of all layers.

    A prompt is read as with any other cache. After that, in *steps*, the place of the newest token is a number on the
    device: a step that was captured into a graph puts each token one place further.

    Parameters
    ----------
    layers : int
        Of the model.
    room : int
        Tokens.
    device : torch.device
        Of the model.
    """

    def __init__(self, layers: int, room: int, device: torch.device) -> None:
        self.room = room
        self.stepping = False
        self.length = torch.zeros(1, dtype=torch.int64, device=device)
        self.parts = [_Layer(self) for _ in range(layers)]
        super().__init__(layers=list(self.parts))

    def reset(self) -> None:
        """Forget everything; the memory stays."""
        self.stepping = False
        for part in self.parts:
            part.reset()

    def go_back(self, length: int) -> None:
        """Forget what was read behind so many tokens."""
        for part in self.parts:
            part.seen = length

    @property
    def dtype(self) -> torch.dtype:
        """Of keys and values that are there."""
        keys = self.parts[0].keys
        assert keys is not None
        return keys.dtype
