"""Linear layers of one module that are given the same states: the first one that is called computes them all."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qformats.kernels.form import DeviceWeight
from qformats.kernels.joining import join

__all__ = ["Neighbours", "join_neighbours", "trusted"]

_NAMES = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("wq", "wk", "wv"), ("w1", "w3"))
"""How layers are called that models give the same states. If one does not, they part at the first few calls."""
_PATIENCE = 4
"""Calls whose products were not all taken, after which layers are computed one by one for good."""

_trust = threading.local()


@contextlib.contextmanager
def trusted() -> Iterator[None]:
    """Let layers be computed together in this thread also where nothing shows that states were changed in place.

    Only for callers who compare the result with that of the layers one by one.
    """
    before, _trust.on = getattr(_trust, "on", False), True
    try:
        yield
    finally:
        _trust.on = before


class _Own(threading.local):
    """What the calls of one thread leave to the next ones."""

    last: tuple[weakref.ref[Tensor], int, list[Tensor | None]] | None = None
    """States, their version, and products of them that were not taken yet."""
    missed = 0
    """Times that some were not."""


class Neighbours:
    """Layers of one kind whose products with the same states take one launch.

    A product is given only for the very tensor that it was computed of, unchanged; for any other one, a layer's product
    is computed anew.

    Parameters
    ----------
    layers : sequence of QuantLinear
        Arranged, in the order of `rows`.
    weight : DeviceWeight
        All of their rows.
    """

    def __init__(self, layers: Sequence[Any], weight: DeviceWeight) -> None:
        self._layers, self._weight = list(layers), weight
        self._rows = tuple(layer.shape[0] for layer in layers)
        self._joined: Any = None
        self._biases: tuple[tuple[Any, ...], Tensor | None] | None = None
        self._own = _Own()
        self.together = True

    def __reduce__(self) -> Any:
        # Copies of layers are computed one by one.
        return type(None), ()

    def part(self) -> None:
        """Compute the layers one by one from now on."""
        self.together, self._own = False, _Own()

    def product(self, layer: Any, x: Tensor) -> Tensor | None:
        """What a layer gives for states, its bias included; None if it has to be computed alone.

        Parameters
        ----------
        layer : QuantLinear
            One of them.
        x : Tensor
            ``(..., K)``, on the layers' device.
        """
        if not self.together:
            return None
        if not x.is_inference():
            version = x._version
        elif getattr(_trust, "on", False):
            version = 0
        else:
            return None
        place = next(n for n, each in enumerate(self._layers) if each is layer)
        own = self._own
        last = own.last
        if last is not None and last[0]() is x and last[1] == version:
            found = last[2][place]
            if found is not None:
                last[2][place] = None
                return found
        if last is not None and any(each is not None for each in last[2]):
            own.missed += 1
            if own.missed > _PATIENCE:
                self.part()
                return None
        parts = self._products(x)
        if parts is None:
            own.last = None
            return None
        given: list[Tensor | None] = list(parts)
        given[place] = None
        own.last = weakref.ref(x), version, given
        return parts[place]

    def _products(self, x: Tensor) -> tuple[Tensor, ...] | None:
        bias = self._bias()
        if bias is False:
            return None
        if self._joined is None:
            from qformats.kernels.prepared import JoinedLinear

            self._joined = JoinedLinear(self._weight, self._rows)
        parts: tuple[Tensor, ...] | None = self._joined.products(x, bias)
        return parts

    def _bias(self) -> Any:
        """Biases of all layers, one after the other; None without any, False if only some have one."""
        biases = [layer._parameters["bias"] for layer in self._layers]
        having = [bias for bias in biases if bias is not None]
        if not having:
            return None
        if len(having) < len(biases) or any(bias.is_inference() for bias in having):
            return False
        key = tuple(part for bias in having for part in (id(bias), bias.data_ptr(), bias._version))
        if self._biases is None or self._biases[0] != key:
            # What inference mode makes could not be used outside of it.
            with torch.inference_mode(False):
                self._biases = key, torch.cat([bias.detach() for bias in having])
        return self._biases[1]


def join_neighbours(model: nn.Module) -> None:
    """Let the arranged layers of a model lie together that are given the same states, where they are of one kind."""
    for module in model.modules():
        for names in _NAMES:
            layers = [module._modules.get(name) for name in names]
            fit: list[Any] = [layer for layer in layers if _joinable(layer, layers[0])]
            if len(fit) < len(layers):
                continue
            found = join([layer.arranged() for layer in fit])
            if found is None:
                continue
            whole, parts = found
            together = Neighbours(fit, whole)
            for layer, part in zip(fit, parts, strict=True):
                layer.rearranged(part)
                layer.neighbours = together


def _joinable(layer: Any, first: Any) -> bool:
    if not (isinstance(layer, nn.Linear) and getattr(layer, "is_arranged", False)):
        return False
    packed: Any = layer
    return bool(not packed.is_tied and packed.weight.is_cuda and packed.shape[1] == first.shape[1])
