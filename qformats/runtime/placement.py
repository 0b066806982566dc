"""A model over several devices: which of its blocks lie where, and how what they compute gets from one to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qformats.errors import ConfigError, Described, UnsupportedModelError
from qformats.work.device import chosen_device

__all__ = ["PLANS", "connect", "home_of", "plan_devices", "spread"]

PLANS = ("auto", "sequential")
"""``auto``: GPUs get equal shares; ``sequential``: each is filled before the next. The CPU takes what does not fit."""
_USED = 0.85
"""Part of a GPU's free memory that weights may take; the rest is for activations, keys and values."""

Budgets = Mapping[torch.device, int]


def plan_devices(
    model: nn.Module,
    sizes: Mapping[str, int],
    wanted: str | Mapping[str, Any],
    budgets: Budgets | None = None,
) -> dict[str, torch.device]:
    """Decide where the modules of a model lie.

    Parameters
    ----------
    model : torch.nn.Module
        One of Transformers' causal language models, without weights.
    sizes : mapping of str to int
        Bytes of every parameter, as it will be loaded.
    wanted : str or mapping
        One of :data:`PLANS`; or a device for each module, by name, as accelerate has it. ``""`` is the whole model.
    budgets : mapping of torch.device to int, optional
        Bytes that devices have for weights; by default what GPUs have free.

    Returns
    -------
    dict of str to torch.device
        By name of a module; together they hold every parameter.

    Raises
    ------
    ConfigError
        If `wanted` is neither, names what is not there, or leaves a parameter without a device.
    UnsupportedModelError
        If the model's blocks cannot be found.
    """
    if isinstance(wanted, str):
        if wanted not in PLANS:
            raise ConfigError("device_map", wanted, f"one of {', '.join(PLANS)}, or a device for each module")
        return _shared(_units(model), sizes, budgets or _free(), even=wanted == "auto")
    known = {name for name, _ in model.named_modules()}
    strange = next((name for name in wanted if name not in known), None)
    if strange is not None:
        raise ConfigError("device_map", strange, "names of the model's modules")
    found = {name: _device(place) for name, place in wanted.items()}
    homeless = next((name for name in sizes if home_of(name, found) is None), None)
    if homeless is not None:
        hint = 'Add "" for all that is not named'
        raise ConfigError(
            "device_map", Described(f"no device for {homeless}"), "one for every parameter", hint
        )
    return found


def _device(place: Any) -> torch.device:
    return chosen_device(f"cuda:{place}" if isinstance(place, int) and not isinstance(place, bool) else place)


def home_of(name: str, devices: Mapping[str, torch.device]) -> torch.device | None:
    """Device of a parameter or module: that of the nearest module around it which has one."""
    while name:
        if name in devices:
            return devices[name]
        name = name.rpartition(".")[0]
    return devices.get("")


def _free() -> dict[torch.device, int]:
    numbers = range(torch.cuda.device_count())
    return {
        torch.device("cuda", number): round(_USED * torch.cuda.mem_get_info(number)[0]) for number in numbers
    }


def _units(model: Any) -> list[tuple[str, ...]]:
    """Modules in the order in which they compute; those of one entry stay together."""
    core = getattr(model, model.base_model_prefix, model)
    lists = [
        (name, module)
        for name, module in core.named_children()
        if isinstance(module, nn.ModuleList)
        and len(module) == model.config.get_text_config().num_hidden_layers
    ]
    if len(lists) != 1:
        raise UnsupportedModelError(
            "device_map",
            Described(f"no list of blocks in {type(model).__name__}"),
            ["a device for each module"],
        )
    prefix = f"{model.base_model_prefix}." if core is not model else ""
    blocks, inner = lists[0]
    before = [f"{prefix}{name}" for name, module in core.named_children() if name != blocks and _first(name)]
    after = [
        f"{prefix}{name}" for name, module in core.named_children() if name != blocks and not _first(name)
    ]
    outer = [name for name, module in model.named_children() if module is not core]
    units: list[tuple[str, ...]] = [(f"{prefix}{blocks}.{number}",) for number in range(len(inner))]
    head = (*after, *(outer if core is not model else ()))
    if getattr(model, "_tied_weights_keys", None) and model.config.get_text_config().tie_word_embeddings:
        # The head has the embedding's weight.
        return [(*before, *head), *units]
    return [tuple(before), *units, head]


def _first(name: str) -> bool:
    """Whether a child of the model comes before its blocks."""
    return any(part in name for part in ("embed", "wte", "wpe", "rotary", "rope"))


def _shared(
    units: list[tuple[str, ...]], sizes: Mapping[str, int], budgets: Budgets, *, even: bool
) -> dict[str, torch.device]:
    weights = [
        sum(size for name, size in sizes.items() if home_of(name, dict.fromkeys(unit, torch.device("meta"))))
        for unit in units
    ]
    total, devices = sum(weights), list(budgets)
    found: dict[str, torch.device] = {}
    place, filled, done = 0, 0, 0
    for unit, weight in zip(units, weights, strict=True):
        while place < len(devices):
            share = total * (place + 1) / len(devices) - done if even else float("inf")
            # A block belongs where its middle is, as long as there is room.
            if filled + weight <= budgets[devices[place]] and filled + weight / 2 <= share:
                break
            place, done, filled = place + 1, done + filled, 0
        device = devices[place] if place < len(devices) else torch.device("cpu")
        filled += weight
        found |= dict.fromkeys(unit, device)
    return found


def connect(model: nn.Module, devices: Mapping[str, torch.device]) -> None:
    """Let every module of a plan get what it computes with on its own device, and the result be where the input was.

    Parameters
    ----------
    model : torch.nn.Module
        Loaded by this plan.
    devices : mapping of str to torch.device
        See :func:`plan_devices`.
    """
    if len(set(devices.values())) > 1:
        for name, device in spread(model, devices).items():
            model.get_submodule(name).register_forward_pre_hook(_Arriving(device), with_kwargs=True)
        model.register_forward_hook(_returning, with_kwargs=True)
    model.hf_device_map = {name: str(device) for name, device in devices.items()}  # type: ignore[assignment]


def spread(model: nn.Module, devices: Mapping[str, torch.device]) -> dict[str, torch.device]:
    """The same plan with a device for every module that computes, where others within it lie elsewhere.

    Parameters
    ----------
    model : torch.nn.Module
        Whose plan it is.
    devices : mapping of str to torch.device
        By name of a module; ``""`` is the whole model.
    """
    found: dict[str, torch.device] = {}

    def visit(name: str, module: nn.Module, device: torch.device | None) -> None:
        device = devices.get(name, device)
        within = f"{name}." if name else ""
        whole = not any(other != name and other.startswith(within) for other in devices)
        if device is not None and (whole or module._parameters or module._buffers):
            found[name] = device
        for child, part in [] if whole else module.named_children():
            visit(f"{within}{child}", part, device)

    visit("", model, None)
    return found


class _Arriving:
    """Moves a module's arguments to its device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        def move(tensor: Tensor) -> Tensor:
            # A copy to the CPU that nobody waits for is read before it is there.
            return tensor.to(self.device, non_blocking=self.device.type != "cpu")

        return _moved(args, move), _moved(kwargs, move)


def _returning(model: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    given = next((each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)), None)
    logits = getattr(output, "logits", None)
    if given is not None and isinstance(logits, Tensor):
        output.logits = logits.to(given.device)
    return output


def _moved(value: Any, move: Callable[[Tensor], Tensor]) -> Any:
    """The same with tensors moved, within tuples, lists and dicts; what else there is, such as a cache, stays."""
    if isinstance(value, Tensor):
        return move(value)
    if type(value) in (tuple, list):
        return type(value)(_moved(each, move) for each in value)
    if type(value) is dict:
        return {name: _moved(each, move) for name, each in value.items()}
    return value
