"""Any checkpoint as a Transformers model whose weights stay packed."""

from __future__ import annotations

import contextlib
import json
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from qformats.errors import (
    CheckpointError,
    ConfigError,
    Described,
    NonFiniteError,
    UnsupportedModelError,
    WeightsError,
)
from qformats.exporting import Recipe
from qformats.exporting.on_read import quantized_on_read
from qformats.exporting.recorded import require_unchanged
from qformats.exporting.sound import require_sound
from qformats.folder import FolderCheckpoint
from qformats.folder.experts import is_stack
from qformats.folder.fit import refuse_fragments
from qformats.interfaces.checkpoint import Checkpoint
from qformats.interfaces.packer import PackedTensor
from qformats.interfaces.stored import StoredTensor
from qformats.numbers.dtypes import COMPUTED, dtype_name, torch_dtype
from qformats.registry import registry
from qformats.runtime.build import bare_model
from qformats.runtime.divided import divided
from qformats.runtime.experts import QuantExperts, labels_of, refuse_strange_experts
from qformats.runtime.linear import PackedLayer, QuantEmbedding, QuantLinear
from qformats.runtime.linears import is_linear
from qformats.runtime.names import Place, places, tied_names
from qformats.runtime.neighbours import join_neighbours
from qformats.runtime.one_table import with_one_table
from qformats.runtime.parallel import join, own_share
from qformats.runtime.placement import connect, home_of, plan_devices
from qformats.runtime.read_weights import reads_weight
from qformats.runtime.report import LoadedWeight, report_of
from qformats.runtime.resizing import refuse_resizing
from qformats.runtime.scaled import gives_scaled_rows, scale_of
from qformats.runtime.steps import single_threaded_steps
from qformats.sources import open_model
from qformats.work.arguments import mapping, path, several
from qformats.work.device import chosen_device
from qformats.work.files import json_kind, parse_json
from qformats.work.processes import Processes
from qformats.work.progress import Progress, Silent
from qformats.work.read_ahead import ReadAhead

__all__ = ["load_model"]


def load_model(
    model: str | PathLike[str] | Checkpoint,
    *,
    device: str | torch.device | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    dtype: str | torch.dtype | None = None,
    format: str | None = None,
    quantizer: str | None = None,
    quantizer_options: Mapping[str, str] | None = None,
    tensor_types: Mapping[str, str] | None = None,
    imatrix: str | PathLike[str] | Sequence[str | PathLike[str]] = (),
    tensor_parallel: bool = False,
    options: Mapping[str, str] | None = None,
    verify: bool = False,
    progress: Progress | None = None,
) -> Any:
    """Load a model to run it; see :func:`qformats.load_model`."""
    options = mapping("options", options)
    source = model if isinstance(model, Checkpoint) else open_model(model, options)
    if isinstance(source, FolderCheckpoint):
        refuse_fragments(source)
    progress = progress or Silent()
    require_unchanged(source, verify=verify, progress=progress)
    if device_map is not None and (tensor_parallel or device is not None):
        other = "tensor_parallel" if tensor_parallel else "device"
        raise ConfigError("device_map", Described(f"a map and {other}"), "one of the two")
    here, place = join(device) if tensor_parallel else (Processes(), chosen_device(device))
    source = own_share(source, here)
    computed = _dtype(dtype, source, place)
    # Tensors quantized while loading may come from a temporary export.
    origin = str(source.path)
    with contextlib.ExitStack() as stack:
        if format is not None:
            recipe = Recipe(
                format,
                quantizer=quantizer or "",
                tensor_types=tuple(mapping("tensor_types", tensor_types).items()),
                imatrix=tuple(str(path("imatrix", file)) for file in several("imatrix", imatrix)),
                quantizer_options=tuple(mapping("quantizer_options", quantizer_options).items()),
            )
            if here.ranks > 1:
                _refuse_calibration(recipe)
            source = stack.enter_context(quantized_on_read(source, recipe, options, progress))
        filling = _Filling(with_one_table(source), place, computed, progress, device_map)
        if format is not None:
            filling.refuse_whole_stacks(format)
        loaded = filling.go()
    loaded.qformats_source = origin
    # Transformers is imported by now; without this it would fill our own folders with random numbers in this process.
    from qformats.runtime import transformers_hooks

    transformers_hooks.register()
    return loaded


def _refuse_calibration(recipe: Recipe) -> None:
    """Refuse a quantizer that runs the whole model, of which this process has only a share."""
    if registry().quantizer(recipe.quantizer, dict(recipe.quantizer_options)).prepares:
        found = Described(f"{recipe.quantizer} with tensor parallelism")
        hint = "Export the model to this format first, then load the result"
        raise ConfigError("quantizer", found, "rtn, which needs no more than a share of the model", hint)


def _dtype(dtype: str | torch.dtype | None, source: Checkpoint, device: torch.device) -> torch.dtype:
    """Dtype to compute in: the requested one; float32 on a CPU; otherwise the model's, or a half."""
    if dtype is None:
        told = str(source.config.get("dtype", source.config.get("torch_dtype"))).removeprefix("torch.")
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if told == "bfloat16" else torch.float16
    if isinstance(dtype, str):
        spelled = getattr(torch, dtype, None)
        dtype = spelled if isinstance(spelled, torch.dtype) else torch_dtype(dtype)
    if dtype_name(dtype) not in COMPUTED:
        raise ConfigError("dtype", dtype_name(dtype), "one of " + ", ".join(COMPUTED))
    return dtype


class _Filling:
    """Puts the tensors of a checkpoint into its model, one after the other."""

    def __init__(
        self,
        source: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        progress: Progress,
        device_map: str | Mapping[str, Any] | None = None,
    ) -> None:
        self.dtype, self.progress = dtype, progress
        self.model: Any = bare_model(source, dtype, "run")
        self.source = source = divided(source, self.model)
        self.places = places(source, self.model)
        self.devices = {"": device}
        if device_map is not None:
            self.devices = plan_devices(self.model, self._sizes(), device_map)
        self.decoded: dict[str, LoadedWeight] = {}
        self.wide = _kept_wide(self.model, dtype)

    def _sizes(self) -> dict[str, int]:
        """Bytes of every parameter, as it is stored."""
        sizes: dict[str, int] = {}
        for name, place in self.places.items():
            tensor = self.source.tensors[name]
            nbytes = tensor.nbytes if _quantized(tensor) else tensor.numel * self.dtype.itemsize
            sizes[place.name] = sizes.get(place.name, 0) + nbytes
        return sizes

    def _device(self, name: str) -> torch.device:
        """Where a parameter or a module of the model lies."""
        found = home_of(name, self.devices)
        return next(iter(self.devices.values())) if found is None else found

    def go(self) -> Any:
        """Load everything."""
        self._open_experts()
        self.progress.start("loading", sum(self.source.tensors[name].nbytes for name in self.places))
        with ReadAhead() as ahead:
            for name, place in self.places.items():
                tensor = self.source.tensors[name]
                ahead.reach(tensor.file, tensor.offset, tensor.nbytes)
                self._put(tensor, place)
                self.progress.advance(tensor.nbytes)
        self._tie()
        self._move_buffers()
        self._tell_decoded()
        for name in self.opened:
            self.model.get_submodule(name).stack()
        join_neighbours(self.model)
        self.model.qformats_report = report_of(self.model, self.decoded.values())
        self._generation()
        if self.model.qformats_report.weights:
            self.model.save_pretrained = _refuse_saving
            refuse_resizing(self.model)
        kinds = {device.type for device in self.devices.values()}
        if kinds == {"cpu"} and self.model.qformats_report.weights:
            single_threaded_steps(self.model)
        connect(self.model, self.devices)
        if kinds == {"cuda"}:
            from qformats.runtime.decoding.loop import captured_steps

            captured_steps(self.model)
        return self.model

    def refuse_whole_stacks(self, format: str) -> None:
        """Refuse a model that was to be quantized while loading, and keeps its experts in stacks of an unknown order.

        Raises
        ------
        UnsupportedModelError
            If their experts would stay plain.
        """
        if not any(map(_quantized, self.source.tensors.values())):
            return
        tensors = self.source.tensors
        stacks = [tensors[name] for name in self.places if is_stack(name, tensors[name].shape)]
        if stacks:
            share = 100 * sum(tensor.numel for tensor in stacks) / self.source.parameters
            raise UnsupportedModelError(
                f"{self.source.path}: tensor {stacks[0].name!r}",
                Described(f"stacked experts, which hold {share:.0f} % of the weights"),
                ["a separate matrix for each expert, where a model is quantized while it is loaded"],
                "Export the model to a format whose files hold such experts, and load that",
            )

    # Where tensors go.

    def _open_experts(self) -> None:
        """Give every matrix of experts a layer of its own, where one of them is quantized."""
        stacked = labels_of(self.places.values())
        packed = {
            place.name.rpartition(".")[0]
            for name, place in self.places.items()
            if place.expert is not None and _quantized(self.source.tensors[name])
        }
        for owner in packed:
            rule = self.model.get_submodule(owner)
            share = sum(p.numel() for p in rule.parameters()) / max(1, self.model.num_parameters())
            refuse_strange_experts(owner, rule, stacked[owner], share)
            self._replace(owner, QuantExperts(rule, stacked[owner]))
        self.opened = packed

    def _target(self, place: Place) -> tuple[str, str]:
        """Module and parameter."""
        owner, _, last = place.name.rpartition(".")
        if owner not in self.opened:
            return owner, last
        if place.expert is not None and not place.is_bias:
            return f"{owner}.{place.expert}.{place.label}", "weight"
        return f"{owner}.rule", last

    def _put(self, tensor: StoredTensor, place: Place) -> None:
        owner, last = self._target(place)
        module = self.model.get_submodule(owner)
        self._check_shape(tensor, place, module, last)
        packed, device = tensor.read(), self._device(place.name)
        if not _quantized(tensor):
            (values,) = packed.fields.values()
            self._put_values(module, last, place, values)
            return
        if packed.packer.on_device:
            # As it is: it is checked, unpacked and arranged there.
            fields = {name: field.to(device) for name, field in packed.fields.items()}
            packed = replace(packed, fields=fields)
        try:
            require_sound(packed)
        except NonFiniteError as error:
            # It need not show in what the model says: attention may hide it.
            raise WeightsError(str(tensor.file), tensor.name, error.found, error.hint) from error
        reason = _irreplaceable(module, last)
        if reason is None and (reader := reads_weight(self.model, owner)):
            reason = f"the code of {reader} reads the weight itself"
        if reason is None:
            self._replace(owner, self._layer(module, packed, device))
            return
        note = f"kept as plain numbers, because {reason}"
        self.decoded[place.name] = LoadedWeight(owner, packed.format, 0, note)
        self._put_values(module, last, place, packed.dequantize())

    def _check_shape(self, tensor: StoredTensor, place: Place, module: Any, last: str) -> None:
        held = module._parameters.get(last)
        held = held if held is not None else module._buffers[last]
        wanted = tuple(held.shape)
        if _transposed(module, last):
            wanted = wanted[::-1]
        if _shares(place, last):
            wanted = tuple(place.within(torch.empty(wanted, device="meta")).shape)
        if tuple(tensor.shape) != wanted:
            found = f"shape {tuple(tensor.shape)}"
            raise CheckpointError(tensor.file, found, f"{wanted}, from the configuration", tensor=tensor.name)

    def _layer(self, module: nn.Module, packed: PackedTensor, device: torch.device) -> PackedLayer:
        """Layer of a packed weight in place of a module."""
        if device.type == "cpu":
            # In its own memory, so that the file may change or disappear.
            fields = {name: field.clone() for name, field in packed.fields.items()}
            packed = replace(packed, fields=fields)
        layer = self._of_kind(module, packed)
        if device.type == "cuda":
            layer.arrange(device)
        return _finished(layer.to(device), module)

    def _of_kind(self, module: nn.Module, packed: PackedTensor) -> PackedLayer:
        if isinstance(module, nn.Embedding):
            return QuantEmbedding.from_packed(packed, self.dtype)
        return QuantLinear.from_packed(packed)

    def _replace(self, name: str, module: nn.Module) -> None:
        owner, _, last = name.rpartition(".")
        setattr(self.model.get_submodule(owner), last, module)

    def _put_values(self, module: Any, last: str, place: Place, values: Tensor) -> None:
        """Put plain numbers where they belong."""
        device = self._device(place.name)
        if _transposed(module, last):
            values = values.t()
        if values.is_floating_point():
            values = values.to(torch.float32 if self._stays_wide(place.name) else self.dtype)
        if module._parameters.get(last) is None:
            module._buffers[last] = _owned(values, device)
            return
        held = module._parameters[last]
        if not _shares(place, last):
            module._parameters[last] = nn.Parameter(_owned(values, device), requires_grad=False)
            return
        if held.is_meta:
            room = torch.empty(held.shape, dtype=values.dtype, device=device)
            held = module._parameters[last] = nn.Parameter(room, requires_grad=False)
        place.within(held.data).copy_(values)

    def _stays_wide(self, name: str) -> bool:
        return any(part in name for part in self.wide)

    # What is left when all tensors are in their places.

    def _tie(self) -> None:
        """Let modules share a weight, where the model's class says so and the checkpoint has one of the two."""
        given = {place.name for place in self.places.values()}
        for target, home in tied_names(self.model).items():
            if target in given and home in given:
                continue
            if target in given:
                target, home = home, target
            if home in given:
                self._share(target, home)

    def _share(self, target: str, home: str) -> None:
        module = self.model.get_submodule(target.rpartition(".")[0])
        other = self.model.get_submodule(home.rpartition(".")[0])
        if not isinstance(other, PackedLayer):
            last = target.rpartition(".")[2]
            module._parameters[last] = other._parameters[home.rpartition(".")[2]]
            return
        layer = self._of_kind(module, other.packed())
        layer.tie(other)
        self._replace(target.rpartition(".")[0], _finished(layer.to(self._device(home)), module))

    def _move_buffers(self) -> None:
        for name, module in self.model.named_modules():
            for key, buffer in module._buffers.items():
                if buffer is not None and not isinstance(module, PackedLayer):
                    module._buffers[key] = buffer.to(self._device(name))

    def _tell_decoded(self) -> None:
        if not self.decoded:
            return
        weights = sum(self.model.get_parameter(name).numel() for name in self.decoded)
        share = 100 * weights / max(1, self.source.parameters)
        first = next(iter(self.decoded.values()))
        more = f" and {len(self.decoded) - 1} more" if len(self.decoded) > 1 else ""
        warnings.warn(
            f"{first.name}{more} ({share:.1f} % of the weights) are {first.note}", UserWarning, stacklevel=4
        )

    def _generation(self) -> None:
        """Settings of ``generate``: those that the model came with, else those that Transformers finds in config.json.

        There the class's defaults do not count: a model whose files name no end token does not stop at one.
        """
        from transformers import GenerationConfig

        content = self.source.tokenizer_files().get("generation_config.json")
        if content is None:
            self.model.generation_config = _from_config(self.source.config)
            return
        file = self.source.path / "generation_config.json"
        try:
            settings = parse_json(bytes(content).decode("utf-8"))
        except ValueError as error:
            raise CheckpointError(file, f"is not JSON ({error})", "settings for generate") from error
        if not isinstance(settings, dict):
            raise CheckpointError(file, f"a JSON {json_kind(settings)}", "a JSON object")
        self.model.generation_config = GenerationConfig.from_dict(settings)


def _from_config(config: Mapping[str, Any]) -> Any:
    """What Transformers itself makes of a config.json without a generation_config.json beside it."""
    from transformers import GenerationConfig

    with tempfile.TemporaryDirectory(prefix="qformats-") as folder:
        Path(folder, "config.json").write_text(json.dumps(dict(config), default=str))
        return GenerationConfig.from_pretrained(
            folder, config_file_name="config.json", _from_model_config=True, local_files_only=True
        )


def _refuse_saving(*args: Any, **kwargs: Any) -> None:
    """Stand in for ``save_pretrained``, whose folder nothing could read back."""
    hint = "Use qformats.export on the checkpoint that was loaded"
    found = Described("a model with packed weights")
    raise ConfigError("save_pretrained", found, "one with plain numbers", hint)


def _quantized(tensor: StoredTensor) -> bool:
    return tensor.packer.quantizes


def _shares(place: Place, last: str) -> bool:
    """Whether a tensor is put into a parameter that stacks those of all experts."""
    return place.expert is not None and last == place.name.rpartition(".")[2]


def _transposed(module: Any, last: str) -> bool:
    """Whether a module computes ``x @ weight``, as those of GPT-2 do."""
    return last == "weight" and type(module).__name__ == "Conv1D"


def _irreplaceable(module: Any, last: str) -> str | None:
    """Why a quantized weight cannot stay packed in this place."""
    kind = type(module)
    plain = kind is nn.Embedding or is_linear(kind) or kind.__name__ == "Conv1D"
    if last == "weight" and (plain or gives_scaled_rows(kind)):
        return None
    return f"{kind.__name__} is neither a linear layer nor an embedding"


def _finished(layer: PackedLayer, module: nn.Module) -> PackedLayer:
    """A layer with what the module it replaces has besides its weight."""
    if isinstance(layer, QuantEmbedding):
        layer.padding_idx = cast(nn.Embedding, module).padding_idx
        layer.scale(scale_of(module))
    else:
        # It may be loaded already, or still come.
        layer.register_parameter("bias", module._parameters.get("bias"))
    return layer.eval()


def _kept_wide(model: Any, dtype: torch.dtype) -> tuple[str, ...]:
    """Parts of the names of parameters that stay float32, because the model's class says that halves are too coarse."""
    strict = tuple(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype != torch.float16:
        return strict
    return (*strict, *(getattr(model, "_keep_in_fp32_modules", None) or ()))


def _owned(values: Tensor, device: torch.device) -> Tensor:
    """A contiguous copy on the device, which does not share memory with a mapped file."""
    return torch.empty(values.shape, dtype=values.dtype, device=device).copy_(values)
