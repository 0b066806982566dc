"""Scaling the columns of a block's layers before they are rounded, by what reaches them on the calibration text."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from qformats.calibration.experts import expert_of
from qformats.calibration.folds import Fold, Part, exact_factors, scaled
from qformats.calibration.layer import Layer, Scale, SharedInput
from qformats.calibration.moments import Moments
from qformats.calibration.probing import Probe, heads_of
from qformats.calibration.skeleton import Skeleton
from qformats.calibration.stream import Stream
from qformats.interfaces.checkpoint import Checkpoint
from qformats.interfaces.packer import PackedTensor, Packer
from qformats.numbers.dtypes import torch_dtype
from qformats.work.memory import return_freed
from qformats.work.progress import Progress

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["PROBED", "Scaling", "unscaled_note"]

PROBED = 16
"""Tokens that a block is tried on: what it computes does not depend on their number."""
_MEMORY = 1 << 30
"""Bytes of second moments that are gathered at a time, as those of experts are."""
_SHOWN = 4
"""Layers that a notice names."""
NOTHING = "nothing in front takes their factors over"
"""Why most layers are not scaled that are not."""


class Run(Protocol):
    """What a calibration knows, and does for all of its parts."""

    source: Checkpoint
    formats: Mapping[str, Packer]
    device: torch.device
    progress: Progress

    def check_moments(self, name: str, moments: Moments, *, few: bool = True) -> None:
        """Refuse inputs that are not finite."""


@dataclass(eq=False)
class Scaling:
    """Factors for the columns of one block after the other.

    Attributes
    ----------
    run : Run
        What is quantized, into what, and who is told.
    skeleton : Skeleton
        The model.
    choose : callable
        The quantizer.
    arguments : sequence of mapping
        What each block is called with beside hidden states, for :data:`PROBED` tokens.
    """

    run: Run
    skeleton: Skeleton
    choose: Scale
    arguments: Sequence[Mapping[str, Any]]
    _known: list[tuple[set[str], list[Fold]]] = field(default_factory=list)

    def block(self, number: int, module: Any, stream: Stream) -> ScaledBlock:
        """A loaded block, its columns scaled; `module` computes with the scaled weights, and gives what it gave."""
        done = ScaledBlock(self, number, module, stream)
        done.go()
        return done

    def folds(self, number: int, module: Any, states: Tensor, wanted: Sequence[str]) -> list[Fold]:
        """What can be scaled in a block: if it can be, what could be in one before it, else found anew."""
        import torch

        if any(p.dtype != torch.float32 for p in module.parameters()):
            module = copy.deepcopy(module).float()
        arguments = _in_float32(self.arguments[number])
        states = states[:1, :PROBED].float()
        linears = self.skeleton.linears(number)
        probe = Probe(module, linears, states, arguments, heads_of(self.run.source.config, module))
        for layers, known in self._known:
            if layers == set(wanted) and probe.holds(known):
                return known
        found = probe.find(wanted)
        if len(found) > 1 and not probe.holds(found):
            # One by one they do: nothing is known that would make this happen, and nothing wrong comes of it.
            found = []
        self._known.append((set(wanted), found))
        return found


class ScaledBlock:
    """One block: which of its columns can be scaled, and by what they are.

    Attributes
    ----------
    changes : dict of str to list of (Part, Tensor)
        Factors that have gone into each parameter, by its name within the block, in that order.
    kept : dict of str to PackedTensor
        Parameters that stay plain numbers and have changed, by canonical name.
    unscaled : dict of str to str
        Why a layer is not scaled, by the canonical name of its weight.
    """

    def __init__(self, scaling: Scaling, number: int, module: Any, stream: Stream) -> None:
        self._scaling, self._run, self._skeleton = scaling, scaling.run, scaling.skeleton
        self._number, self._module, self._stream = number, module, stream
        self.changes: dict[str, list[tuple[Part, Tensor]]] = {}
        self.kept: dict[str, PackedTensor] = {}
        self.unscaled: dict[str, str] = {}

    def go(self) -> None:
        """Find what can be scaled, gather its inputs, and let the quantizer choose."""
        linears = self._skeleton.linears(self._number)
        wanted = [local for local in linears if self._canonical(f"{local}.weight") in self._run.formats]
        if not wanted:
            return
        total = len(self._skeleton.blocks)
        self._run.progress.start(f"block {self._number + 1} of {total}: what can be scaled", 0)
        states = self._stream.states.get(0).to(self._run.device)
        found = self._scaling.folds(self._number, self._module, states, wanted)
        usable = []
        for fold in found:
            reason = self._hindrance(fold)
            if reason:
                self._leave(fold, reason)
            elif self._layers(fold):
                usable.append(fold)
        scaled_layers = {layer for fold in found for layer in fold.layers}
        for local in wanted:
            if local not in scaled_layers:
                self.unscaled[self._canonical(f"{local}.weight")] = NOTHING
        for together in _within_memory(usable):
            self._scale(together)

    def read(self, name: str) -> Tensor:
        """A weight of a layer with the factors in it, float32 ``[out, in]``, by canonical name."""
        local = f"{self._skeleton.local(self._number, name)}.weight"
        return self._value(local)

    # What is possible.

    def _canonical(self, parameter: str) -> str:
        owner, _, last = parameter.rpartition(".")
        if last == "weight":
            return self._skeleton.weight(self._number, owner)
        return self._skeleton.name(self._number, parameter)

    def _layers(self, fold: Fold) -> list[str]:
        """Layers of a fold that are quantized."""
        names = [self._canonical(f"{layer}.weight") for layer in fold.layers]
        return [name for name in names if name in self._run.formats]

    def _hindrance(self, fold: Fold) -> str:
        """Why the parameters of a fold cannot change on disk; empty if they can."""
        for part in fold.parts:
            name = self._canonical(part.name)
            if name in self._run.formats:
                continue
            stored = self._run.source.tensors.get(name)
            if stored is None:
                return f"{name} is not stored as a tensor of its own"
            if stored.packer.dense_dtype not in ("f32", "f16", "bf16"):
                return f"{name} stays in {stored.format}"
        return ""

    def _leave(self, fold: Fold, reason: str) -> None:
        self.unscaled |= dict.fromkeys(self._layers(fold), reason)

    # What is chosen.

    def _scale(self, folds: Sequence[Fold]) -> None:
        inputs = {fold: _Inputs(fold, self._run.device) for fold in folds}
        title = f"block {self._number + 1} of {len(self._skeleton.blocks)}: inputs of {len(folds)} groups of layers"
        self._run.progress.start(title, len(self._stream.states))
        handles: list[Any] = []
        try:
            for gathered in inputs.values():
                handles += gathered.listen(self._module)
            for index in range(len(self._stream.states)):
                self._stream.run(index)
                self._run.progress.advance(1)
        finally:
            for handle in handles:
                handle.remove()
        # A fold changes what reaches the layers of no other, so that all of these inputs stay right.
        for fold in folds:
            self._choose(fold, inputs.pop(fold))
            return_freed()

    def _choose(self, fold: Fold, gathered: _Inputs) -> None:
        names = self._layers(fold)
        if not gathered.moments.tokens:
            self._leave(fold, "the calibration text does not reach them")
            return
        self._run.check_moments(names[0], gathered.moments, few=False)
        plain = {
            part: self._value(part.name)
            for part in fold.parts
            if self._canonical(part.name) not in self._run.formats
        }
        dtypes = {part: self._dtype(part) for part in plain}
        layers = [Layer(name, self._run.formats[name], partial(self.read, name)) for name in names]
        shares = [gathered.share(self._skeleton.local(self._number, name)) for name in names]
        total = len(self._skeleton.blocks)
        title = f"block {self._number + 1} of {total}: factors of {', '.join(fold.layers[:_SHOWN])}"
        self._run.progress.start(title, 0)
        shared = SharedInput(
            layers,
            shares,
            gathered.moments,
            gathered.magnitude,
            fold.index.to(self._run.device),
            lambda wanted: exact_factors(wanted, plain, dtypes),
        )
        factors = self._scaling.choose(shared)
        if factors is None:
            return
        for part in fold.parts:
            self.changes.setdefault(part.name, []).append((part, factors))
            self._assign(part.name)

    def _dtype(self, part: Part) -> str:
        dtype = self._run.source.tensors[self._canonical(part.name)].packer.dense_dtype
        assert dtype is not None
        return dtype

    def _value(self, parameter: str) -> Tensor:
        """A parameter with the factors so far in it, float32, a matrix as ``[out, in]``."""
        values = self._skeleton.read(self._canonical(parameter)).to(self._run.device)
        return scaled(values, self.changes.get(parameter, ()))

    def _assign(self, parameter: str) -> None:
        """Let the block compute with what a parameter has become, and keep it if it will not be quantized."""
        name = self._canonical(parameter)
        values = self._value(parameter)
        if name not in self._run.formats:
            stored = self._run.source.tensors[name]
            assert stored.packer.dense_dtype is not None
            values = values.to(torch_dtype(stored.packer.dense_dtype))
            field_name = next(iter(stored.packer.stored(stored.shape)))
            kept = PackedTensor(stored.packer, stored.shape, {field_name: values.cpu()})
            self.kept[name] = kept
        owner, _, last = parameter.rpartition(".")
        self._skeleton.assign(self._module.get_submodule(owner), last, values.float(), name)


class _Inputs:
    """What reaches the layers of a fold."""

    def __init__(self, fold: Fold, device: torch.device) -> None:
        import torch

        self._fold = fold
        self.moments = Moments(len(fold.index), device)
        self._sum = torch.zeros(len(fold.index), dtype=torch.float64, device=device)
        self._tokens: dict[str, int] = {}

    def listen(self, module: Any) -> list[Any]:
        """Hooks that gather, while the block runs."""
        own = [layer for layer in self._fold.layers if expert_of(layer)]
        if len(own) == len(self._fold.layers) == 1 or not own:
            # Of several layers each gets the same.
            handles = [module.get_submodule(self._fold.layers[0]).register_forward_pre_hook(self._add)]
        else:
            # Only what is in front of a router gives every token.
            handles = [module.get_submodule(self._fold.before).register_forward_hook(self._add_output)]
        return handles + [
            module.get_submodule(layer).register_forward_pre_hook(partial(self._count, layer))
            for layer in own
        ]

    def _add(self, _: Any, args: tuple[Tensor, ...]) -> None:
        import torch

        self.moments.add(args[0])
        self._sum += args[0].reshape(-1, len(self._sum)).float().abs().sum(0, dtype=torch.float64)

    def _add_output(self, module: Any, _: Any, output: Tensor) -> None:
        self._add(module, (output,))

    def _count(self, layer: str, _: Any, args: tuple[Tensor, ...]) -> None:
        self._tokens[layer] = self._tokens.get(layer, 0) + args[0].numel() // max(1, args[0].shape[-1])

    @property
    def magnitude(self) -> Tensor:
        """Mean magnitude of each column, float32."""
        return (self._sum / max(1, self.moments.tokens)).float()

    def share(self, layer: str) -> float:
        """Share of the tokens that reach a layer: all of them, unless it is an expert's."""
        if not expert_of(layer):
            return 1.0
        return self._tokens.get(layer, 0) / max(1, self.moments.tokens)


def _within_memory(folds: Sequence[Fold]) -> Iterator[list[Fold]]:
    together: list[Fold] = []
    used = 0
    for fold in folds:
        needed = 4 * len(fold.index) ** 2
        if together and used + needed > _MEMORY:
            yield together
            together, used = [], 0
        together.append(fold)
        used += needed
    if together:
        yield together


def _in_float32(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {key: _in_float32(each) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_in_float32(each) for each in value)
    return value


def unscaled_note(unscaled: Mapping[str, str], layers: int, within: Callable[[str], str]) -> str:
    """Sentence about layers whose columns are not scaled; empty if there are none.

    Parameters
    ----------
    unscaled : mapping of str to str
        Why, by canonical name of a weight.
    layers : int
        Layers that were to be scaled.
    within : callable
        Name of a weight within its block.

    Examples
    --------
    >>> from qformats.calibration.scaling import unscaled_note
    >>> unscaled_note({"h.0.fc2.weight": "nothing in front takes their factors over"}, 4, lambda name: name[4:])
    '1 of 4 layers are rounded without scaling: fc2 (nothing in front takes their factors over)'
    """
    if not unscaled:
        return ""
    kinds: dict[tuple[str, str], None] = {}
    for name, reason in unscaled.items():
        local = within(name).removesuffix(".weight")
        expert = expert_of(local)
        kinds[f"{expert[0]}.*.{expert[2]}" if expert else local, reason] = None
    by_reason: dict[str, list[str]] = {}
    for local, reason in kinds:
        by_reason.setdefault(reason, []).append(local)
    told = []
    for reason, locals in by_reason.items():
        more = f" and {len(locals) - _SHOWN} more" if len(locals) > _SHOWN else ""
        told.append(f"{', '.join(locals[:_SHOWN])}{more} ({reason})")
    return f"{len(unscaled)} of {layers} layers are rounded without scaling: {'; '.join(told)}"
