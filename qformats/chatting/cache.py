"""Keys and values of several texts of different lengths, side by side: the newest tokens are aligned at the end.

A text joins a batch with its own keys and values, padded in front; one that ends leaves without moving the others but
for padding that nobody needs any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

__all__ = ["KeysAndValues", "clipped", "gathered", "growing", "keeps_everything", "nbytes", "taken"]

_SPARE = 64
"""Tokens of room that a layer has at first; it grows by a quarter."""

KeysAndValues = list[tuple[Tensor, Tensor]]
"""Of one text, layer by layer: each ``(heads, tokens, width)``."""


class _Growing(DynamicLayer):  # type: ignore[no-untyped-call]
    """A layer that writes new tokens behind the old ones instead of copying all of them each time.

    It keeps all tokens, also those of models that look back only so far: which ones are seen is up to the mask.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._rooms: list[Tensor] = []
        held, new = self.get_seq_length(), key_states.shape[-2]
        if not self._rooms or held + new > self._rooms[0].shape[-2]:
            room = held + new + max(_SPARE, held // 4)
            old: tuple[Any, Any] = (self.keys, self.values)
            self._rooms = [_room(states, room) for states in (key_states, value_states)]
            for place, before in zip(self._rooms, old, strict=True):
                if held:
                    place[..., :held, :] = before
        for place, states in zip(self._rooms, (key_states, value_states), strict=True):
            place[..., held : held + new, :] = states
        self.keys, self.values = (place[..., : held + new, :] for place in self._rooms)
        return self.keys, self.values

    def fill(self, keys: Tensor, values: Tensor, rooms: list[Tensor]) -> None:
        """Hold what is given, with room behind it."""
        self.lazy_initialization(keys, values)
        self.keys, self.values, self._rooms = keys, values, rooms


def _room(like: Tensor, tokens: int) -> Tensor:
    # Zeros, since what is masked is still multiplied.
    return like.new_zeros((*like.shape[:-2], tokens, like.shape[-1]))


def growing(layers: int) -> DynamicCache:
    """An empty cache.

    Parameters
    ----------
    layers : int
        Of the model.
    """
    cache = DynamicCache()
    layer: Any = _Growing
    cache.layers = [layer() for _ in range(layers)]
    return cache


def keeps_everything(model: Any) -> int:
    """Number of layers of a model whose cache holds nothing but keys and values of tokens; 0 for any other model.

    Others (recurrent states, shared or indexed layers, chunks) cannot be padded, cut or put side by side.
    """
    layers = DynamicCache(config=model.config).layers
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    return len(layers) if plain and not {"chunked_attention", "linear_attention"} & {*kinds} else 0


def _layers(cache: DynamicCache) -> list[Any]:
    """Layers of a cache that was made here."""
    return list(cache.layers)


def nbytes(cache: DynamicCache) -> int:
    """Bytes of the keys and values that a cache holds."""
    held = (layer for layer in _layers(cache) if layer.is_initialized)
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in held)


def taken(cache: DynamicCache, row: int, tokens: int) -> KeysAndValues:
    """Keys and values of one text: the last so many tokens, in memory of their own."""
    length = int(cache.get_seq_length())
    return [
        (layer.keys[row, :, length - tokens :].clone(), layer.values[row, :, length - tokens :].clone())
        for layer in _layers(cache)
    ]


def clipped(held: KeysAndValues, tokens: int) -> KeysAndValues:
    """The first so many tokens of a text; they share its memory."""
    return [(keys[:, :tokens], values[:, :tokens]) for keys, values in held]


@dataclass(frozen=True)
class _Part:
    """Tokens of one text in some cache: of each layer ``(heads, tokens, width)``."""

    layers: KeysAndValues
    tokens: int


def gathered(parts: Sequence[tuple[DynamicCache | KeysAndValues, int, int]]) -> DynamicCache:
    """Texts from several caches side by side, in a new one.

    Parameters
    ----------
    parts : sequence of (cache, int, int)
        Of each text: where it is, its row there, and how many tokens it has.
    """
    views = [_Part(_views(cache, row, tokens), tokens) for cache, row, tokens in parts]
    longest = max(part.tokens for part in views)
    room = longest + max(_SPARE, longest // 4)
    found = growing(len(views[0].layers))
    for number, layer in enumerate(_layers(found)):
        rooms = []
        for which in (0, 1):
            first = views[0].layers[number][which]
            place = first.new_zeros((len(views), first.shape[0], room, first.shape[-1]))
            for row, part in enumerate(views):
                place[row, :, longest - part.tokens : longest] = part.layers[number][which]
            rooms.append(place)
        layer.fill(rooms[0][:, :, :longest], rooms[1][:, :, :longest], rooms)
    return found


def _views(cache: DynamicCache | KeysAndValues, row: int, tokens: int) -> KeysAndValues:
    if isinstance(cache, list):
        return clipped(cache, tokens)
    length = int(cache.get_seq_length())
    return [
        (layer.keys[row, :, length - tokens : length], layer.values[row, :, length - tokens : length])
        for layer in _layers(cache)
    ]
