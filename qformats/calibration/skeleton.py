"""A Transformers model without weights, which can be loaded module by module."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from qformats.calibration.experts import expert_of
from qformats.errors import (
    CheckpointError,
    Described,
    NonFiniteError,
    UnsupportedModelError,
    WeightsError,
    spelled,
)
from qformats.interfaces.checkpoint import Checkpoint
from qformats.interfaces.stored import StoredTensor
from qformats.numbers.dtypes import dtype_name

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from qformats.runtime.names import Place

__all__ = ["Skeleton"]

_SLICE = 1 << 22
"""Weights that are read at a time."""


class Skeleton:
    """The model class of a checkpoint: parameters on the meta device until loaded, buffers (rotary tables) real.

    Parameters
    ----------
    source : Checkpoint
        Where weights are read from.
    dtype : torch.dtype
        What weights are cast to.
    device : torch.device
        Where they go.
    experts_apart : bool
        Whether experts are to be computed one after the other, so that it shows what reaches each.

    Raises
    ------
    UnsupportedModelError
        If Transformers has no causal language model for this configuration, or it has no list of blocks.
    """

    def __init__(
        self, source: Checkpoint, dtype: torch.dtype, device: torch.device, *, experts_apart: bool = False
    ) -> None:
        from qformats.runtime.build import bare_model

        self._source, self.dtype, self.device = source, dtype, device
        self._places: dict[str, list[tuple[str, Place]]] | None = None
        self._replaced: dict[str, StoredTensor] = {}
        self._tuples = False
        self._experts: dict[str, str] = {}
        self._layers: dict[str, str] = {}
        self.model: Any = bare_model(source, dtype, "calibrate")
        self.model.config.use_cache = False
        if experts_apart and hasattr(self.model.config, "_experts_implementation"):
            self.model.config._experts_implementation = "eager"
        for name, buffer in self.model.named_buffers():
            owner, _, last = name.rpartition(".")
            # Some are part of the model, such as the bias by which experts are chosen; the others are computed.
            own = source.tensors.get(name)
            values = buffer if own is None else own.dequantize().to(buffer.dtype)
            self.model.get_submodule(owner)._buffers[last] = values.to(device)
        self.prefix, self.blocks = self._find_blocks()

    def _find_blocks(self) -> tuple[str, Any]:
        """Name and content of the list of decoder blocks: the one with the most weights."""
        import torch

        lists = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, torch.nn.ModuleList) and len(module)
        }
        if not lists:
            found = type(self.model).__name__
            raise UnsupportedModelError(
                "model to calibrate", found, ["a model with a list of decoder blocks"]
            )
        name = max(lists, key=lambda name: sum(p.numel() for p in lists[name].parameters()))
        return name, lists[name]

    def name(self, block: int, local: str) -> str:
        """Canonical name of something within a block."""
        return f"{self.prefix}.{block}.{local}"

    def weight(self, block: int, local: str) -> str:
        """Canonical name of the weight of a layer of a block."""
        name = self.name(block, f"{local}.weight")
        return self._experts.get(name, name)

    def local(self, block: int, weight: str) -> str:
        """Name within a block of the layer whose weight has this canonical name; the inverse of :meth:`weight`."""
        name = self._layers.get(weight, weight)
        return name.removeprefix(self.name(block, "")).removesuffix(".weight")

    def unread(self, names: Collection[str]) -> list[str]:
        """Those of some tensors of the source that the class does not have, as layers that predict further tokens."""
        from qformats.runtime.names import places

        unknown = set(names) - self.model.state_dict().keys()
        return sorted(unknown - places(self._source, self.model).keys()) if unknown else []

    def open_experts(self, names: Collection[str]) -> None:
        """Compute with a layer for each matrix of experts, where one of these tensors is such a matrix.

        Raises
        ------
        UnsupportedModelError
            If the experts compute something unusual.
        """
        from qformats.runtime.experts import QuantExperts, labels_of, refuse_strange_experts
        from qformats.runtime.names import places

        if not any(map(expert_of, names)):
            return
        found = places(self._source, self.model)
        wanted = {
            found[name].name.rpartition(".")[0]
            for name in names
            if name in found and found[name].expert is not None
        }
        # By names of parameters that are about to be gone, too; nothing asks for those.
        self._places = {}
        for canonical, place in found.items():
            self._places.setdefault(place.name, []).append((canonical, place))
        labels = labels_of(found.values())
        weights = max(1, self.model.num_parameters())
        for owner in sorted(wanted):
            rule = self.model.get_submodule(owner)
            share = sum(p.numel() for p in rule.parameters()) / weights
            refuse_strange_experts(owner, rule, labels[owner], share)
            self.model.set_submodule(owner, QuantExperts(rule, labels[owner]))
        for canonical, place in found.items():
            owner = place.name.rpartition(".")[0]
            if owner not in wanted or place.expert is None:
                continue
            if place.is_bias:
                # It stays with what computes the activation.
                self._places[f"{owner}.rule.{place.name.rpartition('.')[2]}"] = self._places[place.name]
            else:
                self._experts[f"{owner}.{place.expert}.{place.label}.weight"] = canonical
        self._layers = {canonical: name for name, canonical in self._experts.items()}

    def columns(self, name: str) -> int:
        """Length of the rows of a tensor of the source."""
        return int(self._source.tensors[name].shape[-1])

    def takes(self, name: str, inputs: int) -> bool:
        """Whether that many inputs are multiplied with a tensor of the source: stacks may have them in rows."""
        shape = self._source.tensors[name].shape
        return inputs == shape[-1] or (len(shape) == 3 and inputs == shape[-2])

    def linears(self, block: int) -> dict[str, Any]:
        """Linear layers of a block, by their names within it."""
        from qformats.runtime.linears import is_linear

        return {
            name: module
            for name, module in self.blocks[block].named_modules()
            if is_linear(type(module)) or type(module).__name__ == "Conv1D"
        }

    def _input_embedding(self) -> Any:
        try:
            return self.model.get_input_embeddings()
        except NotImplementedError:
            # Transformers cannot tell which module it is: then it is one like others outside the blocks.
            return None

    @property
    def embedding(self) -> str:
        """Canonical name of the token embedding's weight; empty if that is not one matrix of the source."""
        return self._weight_of(self._input_embedding(), "Embedding")

    @property
    def head(self) -> str:
        """Canonical name of the output head's weight; empty if that is not one matrix, or the embedding's."""
        return self._weight_of(self.model.get_output_embeddings(), "Linear")

    def _weight_of(self, module: Any, kind: str) -> str:
        if kind not in [each.__name__ for each in type(module).__mro__]:
            return ""
        found = next((name for name, each in self.model.named_modules() if each is module), "")
        name = f"{found}.weight"
        if name not in self._source.tensors:
            return ""
        fits = tuple(self._source.tensors[name].shape) == tuple(module.weight.shape)
        return name if fits else ""

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor of the source, float32, on the CPU.

        Raises
        ------
        WeightsError
            If they hold NaN or infinity.
        """
        return self._part(self._source.tensors[name], name, start, stop)

    def replace(self, tensors: Mapping[str, StoredTensor]) -> None:
        """From now on, read these in place of the source's."""
        self._replaced.update(tensors)

    def head_inputs(self, states: Tensor) -> Tensor:
        """What reaches the output head if the last block gives these hidden states."""
        import torch

        found: list[Tensor] = []

        def reached(_: Any, args: tuple[Tensor, ...]) -> None:
            found.append(args[0])
            raise _SeenEnoughError

        def given(*_: Any, **__: Any) -> Any:
            return (states,) if self._tuples else states

        # Before anything else that waits for it: its weight need not be loaded.
        hook = self.model.get_output_embeddings().register_forward_pre_hook(reached, prepend=True)
        try:
            for block in self.blocks:
                block.forward = given
            batch = torch.zeros(states.shape[:2], dtype=torch.long, device=states.device)
            with contextlib.suppress(_SeenEnoughError):
                self.model(input_ids=batch, use_cache=False)
        finally:
            hook.remove()
            for block in self.blocks:
                del block.forward
        if not found:
            name = type(self.model).__name__
            raise UnsupportedModelError(
                "model to calibrate", Described(f"{name}, whose head is not reached"), ["a model with a head"]
            )
        return found[0]

    def load_block(self, block: int) -> None:
        """Load the weights of a block."""
        for local, module in self.blocks[block].named_modules():
            self._load(self.name(block, local) if local else f"{self.prefix}.{block}", module)

    @property
    def block_nbytes(self) -> int:
        """Bytes of the weights of the largest block, as it runs."""
        sizes = [sum(int(p.numel()) for p in block.parameters()) for block in self.blocks]
        return max(sizes) * int(self.dtype.itemsize)

    def unquantized(self, block: int, name: str) -> Tensor:
        """A weight of a block that is loaded and not quantized yet, by its canonical name: float32, on the device.

        Raises
        ------
        CheckpointError
            If the source has no such tensor.
        WeightsError
            If it holds NaN or infinity.
        """
        import torch

        owner, key = self.local(block, name), "weight"
        module = self.blocks[block].get_submodule(owner)
        parts, loaded = self.stored(name), module._parameters.get(key)
        stored = self._replaced.get(parts[0][0]) or self._source.tensors[parts[0][0]]
        as_it_is = len(parts) == 1 and parts[0][1].expert is None and self._runs_as_stored(stored, self.dtype)
        transposed = type(module).__name__ == "Conv1D"
        if as_it_is and not transposed and loaded is not None and tuple(loaded.shape) == tuple(stored.shape):
            # A copy: whoever quantizes it may work in place.
            values: Tensor = loaded.to(torch.float32, copy=True)
            return values
        return self.read(name).to(self.device)

    def _runs_as_stored(self, stored: StoredTensor, dtype: torch.dtype | None) -> bool:
        """Whether the numbers of a tensor need no conversion."""
        return dtype is not None and stored.packer.dense_dtype == dtype_name(dtype)

    def free_block(self, block: int) -> None:
        """Forget the weights of a block."""
        for module in self.blocks[block].modules():
            _unload(module)

    @contextlib.contextmanager
    def loading_on_use(self) -> Iterator[None]:
        """Load modules outside the blocks, such as the embedding, when they are used; forget them afterwards."""
        hooks = []
        loaded: list[Any] = []

        def before(module: Any, *_: Any) -> None:
            self._load(names[module], module)
            loaded.append(module)

        names = {
            module: name
            for name, module in self.model.named_modules()
            if not f"{name}.".startswith(f"{self.prefix}.") and module._parameters
        }
        try:
            hooks += [module.register_forward_pre_hook(before) for module in names]
            # Whatever runs begins with it, and Llama 4 sends the tokens to where its weight is before it is called.
            embedding = self._input_embedding()
            if embedding in names:
                before(embedding)
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for module in loaded:
                _unload(module)

    def _load(self, name: str, module: Any) -> None:
        for key, value in module._parameters.items():
            if value is not None and value.is_meta:
                full = f"{name}.{key}" if name else key
                self.assign(module, key, self.read(full, self.dtype), full)

    def stored(self, name: str) -> list[tuple[str, Place]]:
        """Tensors of the source that a parameter consists of, by canonical name: most often one, of the same name.

        Raises
        ------
        CheckpointError
            If the source has none: the model class and the file do not fit together.
        """
        from qformats.runtime.names import Place, places, tied_names

        name = self._experts.get(name, name)
        if name in self._source.tensors:
            return [(name, Place(name))]
        home = tied_names(self.model).get(name, "")
        if home in self._source.tensors:
            return [(home, Place(home))]
        if self._places is None:
            self._places = {}
            for canonical, place in places(self._source, self.model).items():
                self._places.setdefault(place.name, []).append((canonical, place))
        if name not in self._places:
            plain = spelled("--quantizer rtn", "quantizer='rtn'")
            hint = f"quantize such a model without calibration ({plain})"
            raise CheckpointError(self._source.path, f"lacks {name}, which its model class needs", hint=hint)
        return self._places[name]

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Values of a parameter, on the CPU, float32 unless another dtype is asked for.

        Raises
        ------
        CheckpointError
            If the source has no such tensor: the model class and the file do not fit together.
        WeightsError
            If it holds NaN or infinity.
        """
        import torch

        parts = self.stored(name)
        if len(parts) == 1 and parts[0][1].expert is None:
            return self._values(parts[0][0], dtype)
        owner, _, last = name.rpartition(".")
        shape = tuple(self.model.get_submodule(owner)._parameters[last].shape)
        values = torch.empty(shape, dtype=dtype or torch.float32)
        for canonical, place in parts:
            place.within(values).copy_(self._values(canonical, dtype))
        return values

    def _values(self, name: str, dtype: torch.dtype | None) -> Tensor:
        import torch

        stored = self._replaced.get(name) or self._source.tensors[name]
        as_it_is = self._runs_as_stored(stored, dtype)
        values = torch.empty(stored.shape, dtype=dtype or torch.float32)
        # In slices: as float32, and while it is checked, a weight is several times as large as when stored.
        step = stored.rows
        if stored.step:
            step = max(1, _SLICE // max(1, stored.numel // stored.rows) // stored.step) * stored.step
        for start in range(0, stored.rows, step):
            stop = min(stored.rows, start + step)
            values[start:stop] = (self._plain if as_it_is else self._part)(stored, name, start, stop)
        return values

    def _plain(self, stored: StoredTensor, name: str, start: int, stop: int) -> Tensor:
        """Rows as they are stored."""
        from qformats.kernels.dense import require_finite

        (part,) = stored.read(start, stop).fields.values()
        try:
            require_finite(part)
        except NonFiniteError as error:
            raise WeightsError(str(stored.file), name, "holds NaN or infinity", "repair the model") from error
        return part

    def _part(self, stored: StoredTensor, name: str, start: int, stop: int) -> Tensor:
        part = stored.read(start, stop).dequantize()
        if not bool(part.isfinite().all()):
            raise WeightsError(str(stored.file), name, "holds NaN or infinity", "repair the model")
        return part

    def assign(self, module: Any, key: str, weight: Tensor, name: str) -> None:
        """Put a weight in its place, transposed where the module computes ``x @ weight``."""
        wanted = tuple(module._parameters[key].shape)
        if key == "weight" and type(module).__name__ == "Conv1D":
            weight = weight.t()
        if tuple(weight.shape) != wanted:
            raise CheckpointError(self._source.path, f"shape {tuple(weight.shape)}", f"{wanted}", tensor=name)
        module._parameters[key] = _parameter(weight.to(self.device, self.dtype))

    def batches(self, tokens: Tensor, size: int) -> Iterator[tuple[Tensor, list[dict[str, Any]]]]:
        """Arguments that the blocks are called with.

        Parameters
        ----------
        tokens : Tensor
            int64, ``(pieces, tokens of a piece)``.
        size : int
            Pieces per batch.

        Yields
        ------
        tuple of Tensor and list of dict
            Hidden states before the first block, and the other arguments of each block.
        """
        known: dict[int, list[dict[str, Any]]] = {}
        for start in range(0, tokens.shape[0], size):
            batch = tokens[start : start + size].to(self.device)
            count = batch.shape[0]
            states, arguments = self._record(batch, every=count not in known)
            if arguments is not None:
                known[count] = arguments
            yield states, known[count]

    def _record(self, batch: Tensor, *, every: bool) -> tuple[Tensor, list[dict[str, Any]] | None]:
        """Run the model up to its blocks, and past them (only the first for real), to record their arguments."""
        hidden: list[Tensor] = []
        arguments: list[dict[str, Any]] = []
        original = [block.forward for block in self.blocks]
        shape: list[bool] = []

        def stand_in(index: int) -> Any:
            def forward(states: Tensor, *args: Any, **kwargs: Any) -> Any:
                if args:
                    # Blocks of some models take them by position.
                    kwargs = {**dict(zip(_positional(original[index]), args, strict=False)), **kwargs}
                arguments.append(kwargs)
                if index == 0:
                    hidden.append(states)
                    if not every:
                        raise _SeenEnoughError
                    given = original[0](states, **kwargs)
                    shape.append(isinstance(given, tuple))
                    self._tuples = shape[0]
                if index == len(self.blocks) - 1:
                    raise _SeenEnoughError
                return (states,) if shape[0] else states

            return forward

        if every:
            self.load_block(0)
        try:
            for index, block in enumerate(self.blocks):
                block.forward = stand_in(index)
            with contextlib.suppress(_SeenEnoughError):
                self.model(input_ids=batch, use_cache=False)
        finally:
            for block in self.blocks:
                del block.forward
            if every:
                self.free_block(0)
        if not hidden or (every and len(arguments) != len(self.blocks)):
            found = Described(f"{type(self.model).__name__}, whose blocks do not run one after the other")
            raise UnsupportedModelError("model to calibrate", found, ["a model that runs block by block"])
        return hidden[0], arguments if every else None

    def around(self, tokens: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Run what lies outside the blocks only; :meth:`batches` has run before.

        Parameters
        ----------
        tokens : Tensor
            int64, ``(pieces, tokens of a piece)``.
        states : Tensor
            Hidden states after the last block.

        Returns
        -------
        tuple of Tensor
            Hidden states before the first block, and logits.
        """
        before: list[Tensor] = []

        def stand_in(hidden: Tensor, *_: Any, **__: Any) -> Any:
            before.append(hidden)
            return (states,) if self._tuples else states

        try:
            for block in self.blocks:
                block.forward = stand_in
            logits: Tensor = self.model(input_ids=tokens.to(self.device), use_cache=False).logits
        finally:
            for block in self.blocks:
                del block.forward
        return before[0], logits


class _SeenEnoughError(Exception):
    """Ends a run whose rest is not needed."""


def _positional(forward: Any) -> list[str]:
    import inspect

    return list(inspect.signature(forward).parameters)[1:]


def _unload(module: Any) -> None:
    for key, value in module._parameters.items():
        if value is not None:
            module._parameters[key] = _parameter(value.to("meta"))


def _parameter(value: Tensor) -> Any:
    import torch

    return torch.nn.Parameter(value, requires_grad=False)
