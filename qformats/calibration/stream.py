"""A block and the hidden states that run through it, once per batch as far as memory allows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qformats.calibration.activations import Activations, Kept, Memory

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Course", "Stream", "observe"]


@dataclass(frozen=True)
class Course:
    """In which order data reaches the linear layers of a block.

    Attributes
    ----------
    groups : tuple of tuple of str
        Layers in that order; those of the same input together.
    ends : mapping of str to (str, int)
        Layers whose output is the output of a direct child of the block (attention, feed-forward network): the child's
        name, and how many results it has (0: a tensor by itself; n: a tuple whose others are ``None``). The child need
        not run again once the input of that layer is known.
    """

    groups: tuple[tuple[str, ...], ...]
    ends: Mapping[str, tuple[str, int]]


def observe(module: Any, linears: Mapping[str, Any], states: Tensor, arguments: Mapping[str, Any]) -> Course:
    """Run a block once and note in which order data reaches which of its linear layers."""
    groups: dict[int, list[str]] = {}
    alive: list[Any] = []
    outputs: dict[int, str] = {}
    ends: dict[str, tuple[str, int]] = {}
    seen: set[str] = set()

    def layer(local: str) -> Any:
        def hook(_: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            if local not in seen:
                seen.add(local)
                # Kept, so that no other tensor gets its identity.
                alive.extend((args[0], output))
                groups.setdefault(id(args[0]), []).append(local)
                outputs[id(output)] = local

        return hook

    def child(name: str) -> Any:
        def hook(_: Any, args: Any, output: Any) -> None:
            first, *rest = output if isinstance(output, tuple) else (output,)
            local = outputs.get(id(first))
            # A dropout at the end gives what it is given, and may end several parts.
            inside = local is not None and local.startswith(f"{name}.")
            if local is not None and inside and all(value is None for value in rest):
                ends[local] = (name, 1 + len(rest) if isinstance(output, tuple) else 0)

        return hook

    hooks = [linears[local].register_forward_hook(layer(local)) for local in linears]
    hooks += [part.register_forward_hook(child(name)) for name, part in module.named_children()]
    try:
        module(states, **arguments)
    finally:
        for hook in hooks:
            hook.remove()
    return Course(tuple(tuple(group) for group in groups.values()), ends)


class Stream:
    """One version of a block, as quantized so far or not at all, and its hidden states.

    Parameters
    ----------
    module : torch.nn.Module
        The block.
    states : Activations
        Hidden states before it.
    arguments : sequence of mapping
        What else it is called with, batch by batch.
    memory : Memory
        Bound on what is kept between two runs of the same batch.
    device : torch.device
        Where the block is.
    """

    def __init__(
        self,
        module: Any,
        states: Activations,
        arguments: Sequence[Mapping[str, Any]],
        memory: Memory,
        device: torch.device,
    ) -> None:
        self.module, self.states, self.arguments = module, states, arguments
        self._memory, self._device = memory, device
        self._inputs: dict[str, Kept] = {}
        self._ends: Mapping[str, tuple[str, int]] = {}

    def follow(self, course: Course) -> None:
        """From now on, keep what makes running parts of the block again unnecessary."""
        self._ends = course.ends

    def run(self, index: int, states: Tensor | None = None) -> Tensor:
        """Output of the block for one batch; for other hidden states than those before it, if they are given."""
        if states is None:
            states = self.states.get(index).to(self._device)
        with self._shortened(index):
            given = self.module(states, **self.arguments[index])
        result: Tensor = given[0] if isinstance(given, tuple) else given
        return result

    def inputs(self, locals: Sequence[str], index: int, *, advance: bool = False) -> dict[str, Tensor]:
        """Inputs of layers for one batch; those that no token reaches, among experts, have none.

        Parameters
        ----------
        locals : sequence of str
            Names of the layers within the block; none of their outputs reaches another.
        index : int
            The batch.
        advance : bool
            Whether to run the block to its end, too, and let its output take the place of the hidden states before it.
        """
        found: dict[str, Tensor] = {}

        def reached(local: str) -> Any:
            def hook(_: Any, args: tuple[Tensor, ...]) -> None:
                found[local] = args[0]
                if len(found) == len(locals) and not advance:
                    raise _ReachedError

            return hook

        handles = [
            self.module.get_submodule(local).register_forward_pre_hook(reached(local)) for local in locals
        ]
        try:
            states = self.run(index)
            if advance:
                self.states.put(index, states)
        except _ReachedError:
            for local in found.keys() & self._ends.keys():
                self._inputs.setdefault(local, Kept(self._memory)).put(index, found[local])
        finally:
            for handle in handles:
                handle.remove()
        return found

    @contextlib.contextmanager
    def _shortened(self, index: int) -> Iterator[None]:
        """Let children of which the last layer's input is known consist of that layer."""
        replaced = []
        for local, kept in self._inputs.items():
            known = kept.get(index)
            if known is not None:
                child, results = self._ends[local]
                part = self.module.get_submodule(child)
                part.forward = _last_layer(self.module.get_submodule(local), known.to(self._device), results)
                replaced.append(part)
        try:
            yield
        finally:
            for part in replaced:
                del part.forward

    def clear(self) -> None:
        """Forget what was kept within the block."""
        for kept in self._inputs.values():
            kept.clear()
        self._inputs.clear()


class _ReachedError(Exception):
    """Ends the run of a block at the layer whose input is wanted."""


def _last_layer(linear: Any, known: Tensor, results: int) -> Any:
    def forward(*_: Any, **__: Any) -> Any:
        output = linear(known)
        return (output, *[None] * (results - 1)) if results else output

    return forward
