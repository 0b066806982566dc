"""How ModelOpt's folders quantize activations.

Source: Model-Optimizer:modelopt/torch/export/convert_hf_config.py, quant_utils.py (``get_activation_scaling_factor``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qformats import Packer
from qformats.interfaces import Place, Scheme, Step
from qformats_modelopt.packers import FloatPacker, NvidiaPacker

__all__ = ["place", "schemes", "step", "with_steps"]

_INPUTS = {
    "FP8": ("fp8", False),
    "FP8_PER_CHANNEL_PER_TOKEN": ("fp8", True),
    "NVFP4": ("nvfp4", False),
    "NVFP4_AWQ": ("nvfp4", False),
    "NVFP4_FP8_MHA": ("nvfp4", False),
}
"""By algorithm: the numbers of its activations, and whether their scales are found as the model runs."""
_CACHE = {"k_scale": ("key", ".k_proj"), "v_scale": ("value", ".v_proj")}


def _inner(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = config.get("quantization")
    return inner if isinstance(inner, Mapping) else config


def schemes(config: Mapping[str, Any]) -> tuple[Scheme, ...]:
    """Of inputs, by algorithm, and of the cache."""
    if "quant_algo" not in _inner(config):
        return ()
    config = _inner(config)
    layers = config.get("quantized_layers")
    each = layers.values() if isinstance(layers, Mapping) else ()
    names = [config.get("quant_algo"), *(one.get("quant_algo") for one in each if isinstance(one, Mapping))]
    known = [_INPUTS[str(name).upper()] for name in names if str(name).upper() in _INPUTS]
    found = [Scheme("input", *one) for one in known]
    cache = config.get("kv_cache_quant_algo")
    declared = config.get("kv_cache_scheme")
    if cache or declared:
        bits = declared.get("num_bits") if isinstance(declared, Mapping) else None
        word = str(cache or ("FP8" if bits in (None, 8) else "NVFP4")).lower()
        found.append(Scheme("cache", word, dynamic=False))
    return tuple(dict.fromkeys(found))


def step(name: str, packer: Packer | None, config: Mapping[str, Any]) -> Step | None:
    """What a number beside a module stands for."""
    module, _, field = name.rpartition(".")
    if field == "input_scale" and isinstance(packer, FloatPacker | NvidiaPacker):
        numbers = "nvfp4" if isinstance(packer, NvidiaPacker) else "fp8"
        return Step("input", numbers, module)
    cache = [scheme for scheme in schemes(config) if scheme.role == "cache"]
    if field in _CACHE and (not cache or cache[0].numbers == "fp8"):
        role, behind = _CACHE[field]
        return Step(role, "fp8", module.removesuffix(behind))
    return None


def place(step: Step, packer: Packer | None) -> Place | None:
    """Where such a number goes."""
    if step.role == "input":
        nvidia = isinstance(packer, NvidiaPacker) and step.numbers == "nvfp4"
        whole = isinstance(packer, FloatPacker) and packer.strategy == "tensor" and step.numbers == "fp8"
        return Place(f"{step.module}.input_scale", shape=()) if nvidia or whole else None
    fields = {role: f"{behind}.{field}" for field, (role, behind) in _CACHE.items()}
    if step.numbers == "fp8" and step.role in fields:
        return Place(f"{step.module}{fields[step.role]}", shape=())
    return None


def with_steps(config: Mapping[str, Any], steps: Sequence[Step]) -> dict[str, Any]:
    """Algorithms that quantize activations, where the folder has numbers for them."""
    written = dict(config)
    inputs = next((one for one in steps if one.role == "input"), None)
    if "quantized_layers" in config:
        fours = {one.module for one in steps if one.role == "input" and one.numbers == "nvfp4"}
        written["quantized_layers"] = {
            name: {**own, "quant_algo": "NVFP4"} if name in fours else own
            for name, own in config["quantized_layers"].items()
        }
    elif inputs is not None:
        groups = {name: dict(group) for name, group in config["config_groups"].items()}
        for group in groups.values():
            # The same kind of numbers as the weights'.
            group["input_activations"] = dict(group["weights"])
        written["config_groups"] = groups
        if inputs.numbers == "nvfp4":
            written["quant_algo"] = "NVFP4"
    if any(one.role == "key" for one in steps):
        written["kv_cache_scheme"] = {"dynamic": False, "num_bits": 8, "type": "float"}
    return written
