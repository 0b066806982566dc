"""How folders of compressed-tensors quantize activations.

Source: compressed-tensors:src/compressed_tensors/quantization/quant_scheme.py (presets), quant_args.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from qformats import Packer
from qformats.interfaces import Place, Scheme, Step
from qformats_compressed_tensors.floats import FloatPacker
from qformats_compressed_tensors.integers import BytePacker
from qformats_compressed_tensors.nvfp4 import NvidiaPacker

__all__ = ["place", "schemes", "step", "with_steps"]

_PRESETS = {
    "int8": ("int8", True),
    "fp8": ("fp8", False),
    "fp8_dynamic": ("fp8", True),
    "fp8_block": ("fp8", True),
    "w4afp8": ("fp8", True),
    "nvfp4": ("nvfp4", False),
    "mxfp4": ("mxfp4", True),
    "mxfp4xfp8": ("fp8", True),
    "mxfp8": ("mxfp8", True),
}
"""Names that stand for whole schemes: the numbers of inputs, and whether their scales are found as the model runs."""
_WIDTH = re.compile(r"w[2-8]a(4|8)(?:_asym)?")
_CACHE = {"k_scale": "key", "v_scale": "value"}
_PROJECTIONS = {"k_proj": "key", "v_proj": "value"}
"""Modules beside which the scales of the cache once were, as those of their outputs."""


def _numbers(arguments: Mapping[str, Any]) -> str:
    bits, kind = arguments.get("num_bits", 8), arguments.get("type", "int")
    if kind != "float":
        return f"int{bits}"
    if bits == 8:
        return (
            "mxfp8" if arguments.get("strategy") == "group" and arguments.get("group_size") == 32 else "fp8"
        )
    return "nvfp4" if arguments.get("group_size", 16) == 16 else "mxfp4"


def _scheme(role: str, arguments: Any) -> list[Scheme]:
    if not isinstance(arguments, Mapping):
        return []
    # "local": scales of blocks are found as the model runs, and the folder holds a number for them all.
    return [Scheme(role, _numbers(arguments), arguments.get("dynamic") is True)]


def schemes(config: Mapping[str, Any]) -> tuple[Scheme, ...]:
    """Of all groups, each once."""
    groups = config.get("config_groups")
    if not isinstance(groups, Mapping) or config.get("quant_method") == "modelopt":
        return ()
    found: list[Scheme] = []
    for name, group in groups.items():
        if isinstance(group, Mapping):
            found += _scheme("input", group.get("input_activations"))
            found += _scheme("output", group.get("output_activations"))
            continue
        width = _WIDTH.fullmatch(str(name).lower())
        preset = (f"int{width[1]}", True) if width else _PRESETS.get(str(name).lower())
        found += [Scheme("input", *preset)] if preset else []
    return tuple(dict.fromkeys([*found, *_scheme("cache", config.get("kv_cache_scheme"))]))


def step(name: str, packer: Packer | None, config: Mapping[str, Any]) -> Step | None:
    """What a number beside a module stands for; ``None`` where it takes another one, a zero point, to use it."""
    module, _, field = name.rpartition(".")
    known = schemes(config)
    if field == "input_global_scale" and isinstance(packer, NvidiaPacker):
        return Step("input", "nvfp4", module, divides=True)
    if field == "input_scale" and isinstance(packer, FloatPacker | BytePacker):
        numbers = "fp8" if isinstance(packer, FloatPacker) else "int8"
        static = Scheme("input", numbers, dynamic=False) in known
        return Step("input", numbers, module) if static and not _lopsided(config) else None
    cache = [scheme.numbers for scheme in known if scheme.role == "cache" and not scheme.dynamic]
    parent, _, last = module.rpartition(".")
    old = field == "output_scale" and last in _PROJECTIONS
    role = _PROJECTIONS[last] if old else _CACHE.get(field)
    if role is None or not cache or cache[0] not in ("fp8", "int8"):
        return None
    return Step(role, cache[0], parent if last in _PROJECTIONS else module)


def _lopsided(config: Mapping[str, Any]) -> bool:
    """Whether inputs of some group have zero points."""
    groups = config.get("config_groups")
    each = groups.values() if isinstance(groups, Mapping) else ()
    inputs = [one.get("input_activations") for one in each if isinstance(one, Mapping)]
    return any(isinstance(one, Mapping) and one.get("symmetric") is False for one in inputs)


def place(step: Step, packer: Packer | None) -> Place | None:
    """Where such a number goes."""
    if step.role == "input":
        if step.numbers == "nvfp4" and isinstance(packer, NvidiaPacker):
            return Place(f"{step.module}.input_global_scale", divides=True)
        # Programs find the scales of inputs of weights in blocks as they run.
        floats = step.numbers == "fp8" and isinstance(packer, FloatPacker) and packer.strategy != "block"
        integers = step.numbers == "int8" and isinstance(packer, BytePacker)
        return Place(f"{step.module}.input_scale") if floats or integers else None
    fields = {role: field for field, role in _CACHE.items()}
    return Place(f"{step.module}.{fields[step.role]}") if step.role in fields else None


def _static(numbers: str) -> dict[str, Any]:
    """Arguments of one number per tensor that the folder holds."""
    found: dict[str, Any] = {
        "num_bits": 8,
        "type": "int" if numbers == "int8" else "float",
        "symmetric": True,
    }
    found |= {"group_size": None, "strategy": "tensor", "dynamic": False, "observer": "minmax"}
    if numbers == "nvfp4":
        found |= {"num_bits": 4, "group_size": 16, "strategy": "tensor_group", "dynamic": "local"}
        found |= {"scale_dtype": "torch.float8_e4m3fn", "zp_dtype": "torch.float8_e4m3fn"}
    return found


def with_steps(config: Mapping[str, Any], steps: Sequence[Step], source: Mapping[str, Any]) -> dict[str, Any]:
    """A declaration with static inputs where numbers for them are there.

    Elsewhere inputs are left alone if a group of the source with the same weights leaves them alone, or quantized as it
    does if their scales are found as the model runs.
    """
    written = dict(config)
    named = {target for group in config["config_groups"].values() for target in group["targets"]}
    inputs = {one.module: one for one in steps if one.role == "input"}
    groups = {}
    for name, group in config["config_groups"].items():
        own = [inputs[target] for target in group["targets"] if target in inputs]
        if "Linear" in group["targets"]:
            own = [one for module, one in inputs.items() if module not in named]
        found = group["input_activations"]
        if own:
            found = _static(own[0].numbers)
        else:
            for before in _alike(group, source):
                if before is None or before.get("dynamic") is True:
                    found = before
        groups[name] = {**group, "input_activations": found}
    written["config_groups"] = groups
    cache = [one for one in steps if one.role in _CACHE.values()]
    if cache:
        written["kv_cache_scheme"] = _static(cache[0].numbers)
    elif (
        isinstance(source.get("kv_cache_scheme"), Mapping)
        and source["kv_cache_scheme"].get("dynamic") is True
    ):
        written["kv_cache_scheme"] = dict(source["kv_cache_scheme"])
    return written


def _alike(group: Mapping[str, Any], source: Mapping[str, Any]) -> list[Any]:
    """What groups of a source with the same weights say of inputs."""
    groups = source.get("config_groups")
    found = []
    for other in groups.values() if isinstance(groups, Mapping) else ():
        weights = other.get("weights") if isinstance(other, Mapping) else None
        if isinstance(weights, Mapping) and all(
            weights.get(key) == group["weights"].get(key)
            for key in ("num_bits", "type", "strategy", "group_size")
        ):
            inputs = other.get("input_activations")
            found.append(dict(inputs) if isinstance(inputs, Mapping) else None)
    return found
