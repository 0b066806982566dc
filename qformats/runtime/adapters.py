"""LoRA adapters over packed weights: make a model ready for them, and read what they add to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qformats.errors import BackendUnavailableError, ConfigError, Described
from qformats.folder.adapter import STARTS
from qformats.work.arguments import told

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Update", "prepare_for_training", "refuse_changed_base", "updates_of"]

_ELSEWHERE = "train with plain LoRA, or merge with PEFT into an unquantized model"


def prepare_for_training(model: Any, *, gradient_checkpointing: bool = True) -> Any:
    """Freeze a model and let gradients through it; see :func:`qformats.prepare_for_training`.

    PEFT's ``prepare_model_for_kbit_training`` does this for the quantization methods that it knows; for others it
    widens every half-precision parameter to float32 and lets no gradient into the first block.
    """
    if not hasattr(model, "enable_input_require_grads"):
        raise ConfigError("model", told(model), "a Transformers model, such as qformats.load_model gives")
    model.requires_grad_(False)
    model.enable_input_require_grads()
    if gradient_checkpointing:
        model.config.use_cache = False
        # Newer versions of Transformers warn of the older name.
        names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
        enable = next(getattr(model, name) for name in names if hasattr(model, name))
        enable({"use_reentrant": False})
    return model


@dataclass(frozen=True, eq=False)
class Update:
    """What adapters add to a weight: a product of two thin matrices, or a sum of such products.

    Attributes
    ----------
    left : Tensor
        float32, ``(N, r)``; scaled, so that the product is in weight units.
    right : Tensor
        float32, ``(r, K)``.
    """

    left: Tensor
    right: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """``(N, K)`` of the weight."""
        return int(self.left.shape[0]), int(self.right.shape[1])

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows ``[start, stop)`` of what is added, float32."""
        return self.left[start:stop] @ self.right


def updates_of(model: Any) -> dict[str, Update]:
    """What the active adapters of a model add to its weights, by canonical name.

    Raises
    ------
    ConfigError
        If there are none, or some are not a plain sum.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise BackendUnavailableError(
            "peft", "is not installed", "install it (pip install 'qformats[peft]')"
        ) from error
    if not isinstance(model, PeftModel):
        found = type(model).__name__
        raise ConfigError("model to merge", found, "a PeftModel, as returned by peft.get_peft_model")
    for name in model.active_adapters:
        refuse_changed_base(name, model.peft_config[name])
        bias = getattr(model.peft_config[name], "bias", "none")
        if bias != "none":
            raise ConfigError(
                f"bias of the adapter {name!r}", bias, "'none', since biases are not merged", _ELSEWHERE
            )
    base: Any = model.get_base_model()
    _refuse_disabled(base)
    updates = dict(_layers(base))
    if not updates:
        raise ConfigError("active adapters", model.active_adapters, "at least one that changes a weight")
    return updates


def refuse_changed_base(name: str, config: Any) -> None:
    """Refuse adapters that took a part out of the base's weights when they were made, such as PiSSA's.

    Raises
    ------
    ConfigError
        What the adapter adds belongs to other weights than those of the base's files.
    """
    start = getattr(config, "init_lora_weights", True)
    if start not in STARTS:
        allowed = "a start that leaves the base's weights as they are: " + ", ".join(map(str, STARTS))
        hint = "save the adapter as plain LoRA (PEFT: path_initial_model_for_weight_conversion), or merge with PEFT"
        raise ConfigError(f"init_lora_weights of the adapter {name!r}", start, allowed, hint)


def _refuse_disabled(model: Any) -> None:
    """Refuse adapters that are disabled."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    if any(isinstance(module, BaseTunerLayer) and module.disable_adapters for module in model.modules()):
        hint = "Merge outside disable_adapter(), or call the model's enable_adapter_layers() first"
        raise ConfigError("adapters", Described("disabled"), "enabled ones", hint)


def _layers(model: Any) -> Iterator[tuple[str, Update]]:
    """Adapted layers within a model, by the names of their weights."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for name, module in model.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            found = Described(f"{type(module).__name__}, a whole trained module")
            allowed = "LoRA, since whole modules are not merged"
            raise ConfigError(f"adapter of {name}", found, allowed, _ELSEWHERE)
        if isinstance(module, BaseTunerLayer) and module.active_adapters:
            parts = [_product(name, module, adapter) for adapter in module.active_adapters]
            known = [part for part in parts if part is not None]
            if known:
                yield f"{name}.weight", _sum(known)


def _product(name: str, layer: Any, adapter: str) -> Update | None:
    """What one adapter adds to one layer; None if it does not reach it."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper

    plain = isinstance(layer, LoraLayer) and not isinstance(layer, ParamWrapper)
    if not plain:
        raise ConfigError(f"adapter of {name}", type(layer).__name__, "LoRA on a linear layer", _ELSEWHERE)
    variant = layer.lora_variant.get(adapter)
    if variant is not None:
        found = type(variant).__name__
        raise ConfigError(f"adapter of {name}", found, "plain LoRA, which adds a product", _ELSEWHERE)
    if layer.lora_bias.get(adapter):
        found = Described("a bias of its own")
        raise ConfigError(f"adapter of {name}", found, "LoRA without lora_bias", _ELSEWHERE)
    if adapter in layer.lora_A:
        left, right = layer.lora_B[adapter].weight, layer.lora_A[adapter].weight
    elif adapter in layer.lora_embedding_A:
        left, right = layer.lora_embedding_A[adapter].t(), layer.lora_embedding_B[adapter].t()
    else:
        return None
    left, right = (part.detach().to("cpu").float().contiguous() for part in (left, right))
    left = left * float(layer.scaling[adapter])
    if not (left.isfinite().all() and right.isfinite().all()):
        hint = "The training diverged: use an earlier checkpoint, or train with a smaller learning rate"
        raise ConfigError(f"adapter of {name}", Described("NaN or infinite numbers"), "finite ones", hint)
    return Update(left, right)


def _sum(parts: list[Update]) -> Update:
    import torch

    if len(parts) == 1:
        return parts[0]
    return Update(torch.cat([part.left for part in parts], 1), torch.cat([part.right for part in parts], 0))
