"""Transformers integration: loading and saving folders of formats that it does not know.

Transformers does not discover plugins: unless this module is imported, it logs that a quantization method is
unknown, and fills the layers with random numbers. Importing it registers every method that an installed plugin writes
and that Transformers lacks.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qformats.errors import CheckpointError, ConfigError, Described
from qformats.exporting import Recipe
from qformats.interfaces.checkpoint import Checkpoint
from qformats.interfaces.packer import Packer
from qformats.registry import PluginWarning, registry
from qformats.runtime.linear import PackedLayer, QuantLinear
from qformats.runtime.linears import is_linear
from qformats.runtime.resizing import refuse_resizing
from qformats.sources import open_model
from qformats.work.compat import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    ConversionOps,
    HfQuantizer,
    QuantizationConfigMixin,
    QuantizationMethod,
    register_quantization_config,
    register_quantizer,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["QformatsConfig", "QformatsQuantizer", "register"]

METHOD = "qformats"
"""``quant_method`` of folders whose family has no method of its own."""
_FOLDER = "huggingface"
_INSTEAD = "qformats.load_model runs it"


class QformatsConfig(QuantizationConfigMixin):
    """``quantization_config`` of a folder; or, given to ``from_pretrained``, the format to quantize into while loading.

    Parameters
    ----------
    format : str, optional
        ``family:variant``.
    quant_method : str
        What config.json calls the method.
    **more
        Everything else that config.json holds about it; kept as it is.
    """

    def __init__(self, format: str | None = None, quant_method: str = METHOD, **more: Any) -> None:
        # Transformers compares it with names; its own enumeration has no place for ours.
        self.quant_method = quant_method  # type: ignore[assignment]
        if format is not None:
            self.format = format
        for key, value in more.items():
            setattr(self, key, value)


class QformatsQuantizer(HfQuantizer):
    """Puts layers with packed weights into a model before Transformers loads it.

    A folder's own tensors tell which layers those are; for an unquantized folder the rules of an export do.
    """

    quantization_config: QformatsConfig

    def __init__(self, quantization_config: QformatsConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._loading_info: Any = None
        self._source: Checkpoint | None = None

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Refuse what cannot work before anything is loaded.

        Raises
        ------
        ConfigError
            If layers are to stay on disk, or there is no format to quantize into.
        """
        if isinstance(device_map, Mapping) and "disk" in device_map.values():
            raise ConfigError("device_map", "disk", "GPUs or cpu: packed weights cannot be offloaded to disk")
        if not self.pre_quantized:
            self._chosen()

    def _chosen(self) -> Packer:
        """Format to quantize into while loading.

        Raises
        ------
        ConfigError
            If folders of it are not loaded by this class.
        """
        packer = registry().packer(str(getattr(self.quantization_config, "format", None)))
        if not _loadable(packer):
            fit = ", ".join(each.name for each in registry().formats() if _loadable(each))
            raise ConfigError("format of QformatsConfig", packer.name, f"one of {fit}", _INSTEAD)
        return packer

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Any = None, dtype: Any = None, **kwargs: Any
    ) -> None:
        import torch

        if not checkpoint_files:
            raise ConfigError("weights", Described("a state dict in memory"), "a folder with files", _INSTEAD)
        self._source = open_model(Path(checkpoint_files[0]).parent, {})
        modules = dict(model.named_modules())
        lost = []
        with torch.device("meta"):
            for name, packer, shape in self._packed():
                module = _name_in(model, modules, name.removesuffix(".weight"))
                if module is None:
                    lost.append(name)
                    continue
                biased = getattr(modules[module], "bias", None) is not None
                layer = QuantLinear(shape[1], shape[0], bias=biased, packer=packer, dtype=dtype)
                model.set_submodule(module, layer)
        if lost:
            raise self._fused(model, lost)
        self._watch(model)

    def _packed(self) -> Iterator[tuple[str, Packer, tuple[int, int]]]:
        """Name, format and shape of every weight that is packed, or will be."""
        assert self._source is not None
        if self.pre_quantized:
            for name, tensor in self._source.tensors.items():
                if tensor.packer.quantizes:
                    yield name, tensor.packer, (tensor.shape[0], tensor.shape[1])
            return
        loader = registry().loader(_FOLDER)
        recipe = Recipe(self._chosen().name, "rtn", container=_FOLDER)
        for assignment in recipe.assign(loader.draft(self._source, {}), loader, self._source):
            if assignment.packer.quantizes:
                shape = assignment.draft.source.shape
                yield assignment.draft.name, assignment.packer, (shape[0], shape[1])

    def _fused(self, model: Any, lost: list[str]) -> CheckpointError:
        """Error for packed weights that the model class keeps in no linear layer of their own."""
        assert self._source is not None
        tensors = self._source.tensors
        share = sum(tensors[name].numel for name in lost) / max(1, self._source.parameters)
        found = (
            f"{len(lost)} packed weights ({share:.0%} of all), such as {lost[0]}, for which "
            f"{type(model).__name__} has no linear layer"
        )
        expected = "a linear layer for each, which models with fused experts do not have"
        return CheckpointError(self._source.path, found, expected, hint=_INSTEAD)

    def _watch(self, model: Any) -> None:
        """Remember which keys were missing or unexpected: Transformers initialises such weights at random."""
        adjust = getattr(model, "_adjust_missing_and_unexpected_keys", None)
        if adjust is None:
            return

        def adjust_and_remember(loading_info: Any) -> None:
            adjust(loading_info)
            self._loading_info = loading_info

        model._adjust_missing_and_unexpected_keys = adjust_and_remember

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        model.__dict__.pop("_adjust_missing_and_unexpected_keys", None)
        self._check_keys(model)
        for module in model.modules():
            if isinstance(module, PackedLayer) and module.weight.device.type == "cuda":
                module.arrange()
        assert self._source is not None
        refuse_resizing(model)
        model.qformats_source, self._source = str(self._source.path), None
        return model

    def _check_keys(self, model: Any) -> None:
        """Refuse a model that differs in part from its files.

        Raises
        ------
        CheckpointError
            If a key was missing, unexpected, or of another shape.
        """
        assert self._source is not None
        path, info, class_ = self._source.path, self._loading_info, type(model).__name__
        if info is None:
            raise CheckpointError(
                path, "this version of Transformers does not tell which weights are missing"
            )
        missing, unexpected = sorted(info.missing_keys), sorted(info.unexpected_keys)
        mismatched = sorted(key[0] for key in info.mismatched_keys)
        for keys, found in (
            (missing, "is missing, and Transformers would fill it with random numbers"),
            (unexpected, f"is not a weight of {class_}"),
            (mismatched, f"does not have the shape it has in {class_}"),
        ):
            if keys:
                more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
                raise CheckpointError(path, found + more, f"the weights of {class_}", tensor=keys[0])

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        """Whether a plain weight of the file is to be packed."""
        module, _, leaf = param_name.rpartition(".")
        if self.pre_quantized or leaf != "weight":
            return False
        return isinstance(model.get_submodule(module), QuantLinear)

    def get_quantize_ops(self) -> ConversionOps:
        """What packs it."""
        assert self._source is not None
        return _Quantize(self._source)

    def is_serializable(self) -> bool:
        """``save_pretrained`` writes the same fields again."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters train: gradients reach the input of every layer."""
        return True


class _Quantize(ConversionOps):
    """Quantize a weight as an export does, from the file's own numbers: the given ones may be cast already."""

    def __init__(self, source: Checkpoint) -> None:
        self._source = source

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, list[Tensor]]:
        """Fields of the weight, by their names in the model."""
        fields: dict[str, list[Tensor]] = {}
        for name, stored in zip(input_dict, source_patterns, strict=True):
            given = input_dict[name]
            device = (given[0] if isinstance(given, list) else given).device
            (dense,) = self._source.tensors[stored].read().fields.values()
            layer = kwargs["model"].get_submodule(name.removesuffix(".weight"))
            packed = registry().quantizer("rtn").encode(dense, layer.packer)
            prefix = name.removesuffix("weight")
            fields |= {prefix + field: [value.to(device)] for field, value in packed.fields.items()}
        return fields


def _loadable(packer: Packer) -> bool:
    """Whether Transformers can quantize into a format: its folders declare our method, its codes are a ``weight``."""
    names = [field.name for field in packer.spec.fields]
    own = (
        packer.grid is not None and registry().family(packer).to_config(packer).get("quant_method") == METHOD
    )
    return own and "weight" in names and not any("." in name for name in names)


def _name_in(model: Any, modules: Mapping[str, Any], name: str) -> str | None:
    """Name of a linear layer in a model that may have the prefix of its base model, or lack it."""
    prefix = f"{model.base_model_prefix}."
    for candidate in (name, name.removeprefix(prefix), prefix + name):
        kind = type(modules.get(candidate))
        if is_linear(kind) or kind.__name__ == "Conv1D":
            return candidate
    return None


def register() -> None:
    """Register every quantization method that an installed plugin writes; a second call does nothing."""
    taken = {method.value for method in QuantizationMethod}
    methods = [METHOD]
    for family in registry().families():
        try:
            declared = family.to_config(family.parse(family.default_variant))
            methods.append(str(declared.get("quant_method", METHOD)))
        except Exception as error:
            # One failing plugin must not take the others down.
            message = f"Transformers cannot load folders of the family {family.name}: {error}"
            warnings.warn(message, PluginWarning, stacklevel=2)
    for method in dict.fromkeys(methods):
        if method not in taken and method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
            register_quantization_config(method)(QformatsConfig)
            register_quantizer(method)(QformatsQuantizer)


register()
