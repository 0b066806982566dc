"""A step of one token, captured into a graph: what it reads and writes, and the proof that it is right."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from qformats.runtime.decoding.cache import StepCache
from qformats.runtime.decoding.fused import Unfit, fused
from qformats.runtime.decoding.graphs import Graphs

__all__ = ["PLACES", "Session", "fingerprint"]

PLACES = "qformats_places"
"""Method of a model whose tokens have positions of their own; see :meth:`Session.settle`."""
_AGREE = 16
"""How far the logits of a step may be from those of the model's own code: so many times the dtype's precision, of their
norm. Rounding in another order makes 1 to 3 times of it (llama, 32 layers)."""
_WARM = 2
"""Steps before one is captured: kernels are compiled in the first."""


class Session:
    """Memory of a captured step for batches of one size; one generation at a time uses it.

    Parameters
    ----------
    model : torch.nn.Module
        One of Transformers' causal language models. It is not kept.
    batch : int
        Sequences.
    room : int
        Tokens of each, prompt included.

    Attributes
    ----------
    busy : threading.Lock
        Held by the generation that uses the session.
    cache : StepCache
        Keys and values.
    tokens : Tensor
        int64, ``(batch, 1)``: what the next step reads.
    scores : Tensor
        float32, ``(batch, vocabulary)``: what the last step has found.
    likeliest : Tensor
        int64, ``(batch,)``: their largest.
    """

    def __init__(self, model: Any, batch: int, room: int) -> None:
        self.busy = threading.Lock()
        self.print = fingerprint(model)
        self.batch, self.room = batch, room
        self.graph: Any = None
        device = model.device
        # What inference mode makes cannot be written outside of it.
        with torch.inference_mode(False):
            self.cache = StepCache(model.config.get_text_config().num_hidden_layers, room, device)
            self.tokens = torch.zeros((batch, 1), dtype=torch.int64, device=device)
            self.pads = torch.zeros(batch, dtype=torch.int64, device=device)
            self.likeliest = torch.zeros(batch, dtype=torch.int64, device=device)
        self.origin: Tensor | None = None
        self.rise: Tensor | int = 1
        self.scores: Tensor = torch.empty(0)

    def fits(self, model: Any, batch: int, room: int) -> bool:
        """Whether this session serves a generation; if not, it needs one of its own."""
        return self.batch == batch and self.room >= room and self.print == fingerprint(model)

    def begin(self, pads: Tensor) -> None:
        """Forget everything, for sequences with so many places at their front that are not seen."""
        self.cache.reset()
        self.pads.copy_(pads)

    def settle(self, model: Any) -> None:
        """Find out which positions the tokens behind the prompt have that was just read.

        They are counted on, unless the model's class says otherwise: its :data:`PLACES` gets the cache and gives the
        position of token 0, and how much it grows with each token.
        """
        told = getattr(model, PLACES, None)
        origin, rise = (-self.pads[:, None], 1) if told is None else told(self.cache)
        with torch.inference_mode(False):
            if self.origin is None:
                # A captured step reads this memory.
                self.origin = torch.empty_like(origin)
                self.rise = torch.empty_like(rise) if isinstance(rise, Tensor) else rise
            self.origin.copy_(origin)
            if isinstance(self.rise, Tensor) and isinstance(rise, Tensor):
                self.rise.copy_(rise)

    def _positions(self, length: Tensor | int) -> Tensor:
        """Of the token that has so many before it."""
        assert self.origin is not None
        return self.origin + self.rise * length

    def start(self, length: int, tokens: Tensor) -> None:
        """Go on in steps after a prompt.

        Parameters
        ----------
        length : int
            Places of the prompt.
        tokens : Tensor
            int64, ``(batch,)``: the first ones behind it.
        """
        self._set(length, tokens)
        self.cache.stepping = True

    def launch(self, *, chosen: bool) -> None:
        """Compute one step.

        Parameters
        ----------
        chosen : bool
            Whether the likeliest token is the next one; if not, the caller fills `tokens` before the next step.
        """
        self.graph.replay()
        if chosen:
            self.tokens.copy_(self.likeliest[:, None])

    def _set(self, length: int, tokens: Tensor) -> None:
        self.cache.length.fill_(length)
        self.tokens.copy_(tokens[:, None])

    def capture(self, model: Any, length: int, tokens: Tensor, mask: Tensor) -> None:
        """Capture the step behind a prompt that was read, and prove it; no other thread runs the model.

        Parameters
        ----------
        model : torch.nn.Module
            The session's.
        length, tokens
            As for :meth:`start`.
        mask : Tensor
            ``(batch, length)``: 1 where the prompt is seen.

        Raises
        ------
        Unfit
            If the step cannot be captured, or gives other numbers than the model's own code.
        """
        expected = self._plainly(model, length, tokens, mask)
        self.cache.stepping = True
        self._set(length, tokens)
        graph = self._captured(model) if model.device.type == "cuda" else _Again(self, model)
        self._prove(graph, expected, length, tokens)
        self.graph = graph

    def _captured(self, model: Any) -> Graphs:
        graphs = Graphs()
        now = torch.cuda.current_stream(model.device)
        with fused(model, self.cache, self.pads):
            beside: Any = torch.cuda.Stream(model.device)  # type: ignore[no-untyped-call]
            beside.wait_stream(now)
            with torch.cuda.stream(beside):
                for _ in range(_WARM):
                    self._step(model)
            now.wait_stream(beside)
            with graphs.capturing(model.device):
                self.advance(model)
        return graphs

    def advance(self, model: Any) -> None:
        """One step, operation by operation."""
        self.scores = self._step(model)
        self.likeliest.copy_(self.scores.argmax(-1))
        self.cache.length.add_(1)

    def _step(self, model: Any) -> Tensor:
        output = model(
            input_ids=self.tokens,
            position_ids=self._positions(self.cache.length),
            past_key_values=self.cache,
            use_cache=True,
            return_dict=True,
        )
        scores: Tensor = output.logits[:, -1].float()
        return scores

    def _plainly(self, model: Any, length: int, tokens: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Two tokens and the logits after each, by the model's own code."""
        found = []
        for count in range(2):
            mask = torch.cat((mask, mask.new_ones(len(mask), 1)), 1)
            output = model(
                input_ids=tokens[:, None],
                position_ids=self._positions(length + count),
                attention_mask=mask,
                past_key_values=self.cache,
                use_cache=True,
                return_dict=True,
            )
            scores = output.logits[:, -1].float()
            found.append((tokens, scores))
            tokens = scores.argmax(-1)
        self.cache.go_back(length)
        return found

    def _prove(self, graph: Any, expected: list[tuple[Tensor, Tensor]], length: int, tokens: Tensor) -> None:
        """Compare two steps with what the model's own code gave."""
        self._set(length, tokens)
        near = _AGREE * torch.finfo(self.cache.dtype).eps
        for given, scores in expected:
            self.tokens.copy_(given[:, None])
            graph.replay()
            apart = float((self.scores - scores).norm() / scores.norm().clamp_min(1e-30))
            if not apart <= near:
                told = f"its logits are {apart:.1e} of their norm away from those of the model's own code"
                raise Unfit(f"captured, {told}")


class _Again:
    """Where there are no graphs: a step that is computed anew each time, which takes the same kernels."""

    def __init__(self, session: Session, model: Any) -> None:
        self.session, self.model = weakref.proxy(session), weakref.proxy(model)

    def replay(self) -> None:
        """Compute the step."""
        session = self.session
        with fused(self.model, session.cache, session.pads):
            session.advance(self.model)


def fingerprint(model: nn.Module) -> int:
    """A number that changes if a captured step no longer is what the model computes.

    It tells where the weights are, and what changes with adapters: which are active, merged or off, and their factors.
    """
    seen: list[Any] = []
    for module in model.modules():
        seen += [value.data_ptr() for value in module._parameters.values() if value is not None]
        seen += [value.data_ptr() for value in module._buffers.values() if value is not None]
        # Code may have been put in place of a module's own.
        seen += [module.training, id(module.__dict__.get("forward"))]
        if hasattr(module, "active_adapters"):
            seen.append(str(module.active_adapters))
        if hasattr(module, "disable_adapters"):
            seen.append(str(module.disable_adapters))
        for name in ("scaling", "merged_adapters"):
            if name in module.__dict__:
                seen.append(str(module.__dict__[name]))
    return hash(tuple(seen))
