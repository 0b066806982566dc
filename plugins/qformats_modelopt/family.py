"""The family ``modelopt``: what folders of NVIDIA's Model Optimizer declare, and which of their modules are quantized.

Source: Model-Optimizer:modelopt/torch/export/convert_hf_config.py, unified_export_hf.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from qformats import Family, Packer
from qformats.errors import ConfigError, Described
from qformats.interfaces import ModuleFields, Place, Scheme, Step
from qformats_modelopt.activations import place, schemes, step, with_steps
from qformats_modelopt.packers import FAMILY, FloatPacker, NvidiaPacker

__all__ = ["ModelOpt"]

_METHODS = ("modelopt", "modelopt_fp4", "modelopt_mixed")
_ALGORITHMS = (
    *("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO"),
    *("NVFP4", "W4A16_NVFP4", "MIXED_PRECISION", "NVFP4_FP8_MHA"),
)
"""Values of ``quant_algo`` whose weights are what is read here."""
_BY_TENSORS = ("NVFP4_AWQ",)
"""Those that are read unless a module has tensors that change what its weight means."""
_CHANGES = {
    "pre_quant_scale": "activations are multiplied by it before the weight",
    "svdquant_lora_a": "a product of two more matrices is added",
    "svdquant_lora_b": "a product of two more matrices is added",
}
"""Tensors beside a weight that belong to what its layer computes."""
_PRODUCER = {"name": "modelopt", "version": "0.39.0"}
"""Version of the program whose layouts are written."""
_INSTEAD = "use the model before it was quantized"
_ACTIVATIONS = "says how activations are quantized, and weights do without it"


class ModelOpt(Family):
    """NVFP4 and FP8 per tensor are written; a scale per row or block is read."""

    name = FAMILY
    packers = (NvidiaPacker(), FloatPacker(), FloatPacker("channel"), FloatPacker("block"))
    other_names = ("model-optimizer", "nvidia-modelopt", "model_optimizer")
    programs = ("vllm",)
    config_files = ("hf_quant_config.json",)
    asides = MappingProxyType(
        dict.fromkeys(
            ("input_scale", "output_scale", "k_scale", "v_scale", "k_bias", "v_bias", "q_scale"), _ACTIVATIONS
        )
    )

    def hub_name(self, packer: Packer) -> str:
        """``NVFP4`` or ``FP8``, as NVIDIA publishes them."""
        return packer.spec.variant.upper()

    def detect(self, quantization_config: Mapping[str, Any]) -> Packer | None:
        """Packer of most modules of such a folder; :meth:`locate` decides for each one."""
        config = quantization_config
        inner = config.get("quantization")
        if isinstance(inner, Mapping) and "quant_algo" in inner:
            # The file of its own, hf_quant_config.json.
            config = inner
        elif str(config.get("quant_method", "")).lower() not in _METHODS:
            return None
        algorithm = config.get("quant_algo")
        known = str(algorithm or "").upper()
        if algorithm is not None and known not in (*_ALGORITHMS, *_BY_TENSORS):
            raise ConfigError("quant_algo", algorithm, " or ".join(_ALGORITHMS[:5]), _INSTEAD)
        return FloatPacker() if known.startswith("FP8") else NvidiaPacker()

    def to_config(
        self,
        packer: Packer,
        *,
        dense_modules: Sequence[str] = (),
        packed_modules: Sequence[str] = (),
        dtype: str = "float32",
    ) -> dict[str, Any]:
        """``quantization_config`` with the keys of the program; activations stay as they are."""
        floats = isinstance(packer, FloatPacker)
        weights: dict[str, Any] = {"dynamic": False, "num_bits": 8 if floats else 4, "type": "float"}
        if not floats:
            weights["group_size"] = packer.spec.block_size
        return {
            "config_groups": {"group_0": {"weights": weights, "targets": ["Linear"]}},
            "ignore": list(dense_modules),
            "quant_algo": "FP8" if floats else "W4A16_NVFP4",
            "producer": dict(_PRODUCER),
            "quant_method": "modelopt",
        }

    def to_mixed_config(
        self, packer: Packer, packed: Mapping[str, Packer], *, dense_modules: Sequence[str], dtype: str
    ) -> dict[str, Any]:
        """The same, with an algorithm for each module."""
        config = self.to_config(packer, dense_modules=dense_modules, dtype=dtype)
        del config["config_groups"]
        layers = {}
        for name, own in packed.items():
            usual = self.to_config(own)
            layers[name] = {"quant_algo": usual["quant_algo"]}
            if isinstance(own, NvidiaPacker):
                layers[name]["group_size"] = own.spec.block_size
        return config | {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}

    def extra_files(self, packer: Packer, quantization_config: Mapping[str, Any]) -> dict[str, bytes]:
        """The same in ``hf_quant_config.json``, which TensorRT-LLM reads."""
        quantization = {
            "quant_algo": quantization_config["quant_algo"],
            "kv_cache_quant_algo": "FP8" if quantization_config.get("kv_cache_scheme") else None,
            "exclude_modules": quantization_config["ignore"],
        }
        if "quantized_layers" in quantization_config:
            quantization["quantized_layers"] = quantization_config["quantized_layers"]
        elif isinstance(packer, NvidiaPacker):
            quantization["group_size"] = packer.spec.block_size
        content = {"producer": quantization_config["producer"], "quantization": quantization}
        return {"hf_quant_config.json": (json.dumps(content, indent=4) + "\n").encode()}

    def without_steps(self) -> str:
        """Scales of activations, which only calibration gives."""
        return (
            "the folder has no scales of activations (input_scale): programs that quantize these too, such as vLLM, "
            "need them; compressed-tensors has formats of the same numbers that do without"
        )

    def schemes(self, quantization_config: Mapping[str, Any]) -> tuple[Scheme, ...]:
        """By the names of the algorithms."""
        return schemes(quantization_config)

    def step(self, name: str, packer: Packer | None, quantization_config: Mapping[str, Any]) -> Step | None:
        """``input_scale`` of a module in FP8 per tensor or NVFP4, and ``k_scale`` and ``v_scale``."""
        return step(name, packer, quantization_config)

    def place(self, step: Step, packer: Packer | None) -> Place | None:
        """The same names; those of the cache are beside ``k_proj`` and ``v_proj``."""
        return place(step, packer)

    def with_steps(
        self, quantization_config: Mapping[str, Any], steps: Sequence[Step], source: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Algorithms that quantize activations too."""
        return with_steps(quantization_config, steps)

    def suffixes(self, packer: Packer) -> frozenset[str]:
        """Names of all layouts, and of what would change a weight's meaning."""
        return frozenset(("weight", "weight_scale", "weight_scale_2", *_CHANGES))

    def locate(self, packer: Packer, module: ModuleFields) -> tuple[Packer, tuple[int, int]] | None:
        """Format and shape of the weight of a module, by its tensors rather than by what is declared."""
        stored = module.stored
        for name, what in _CHANGES.items():
            if name in stored:
                found = Described(f"{name}: {what}")
                raise ConfigError(f"fields of {module.name}", found, "a weight with scales only", _INSTEAD)
        shape, kind = stored.get("weight", ((), ""))
        if "weight_scale" not in stored:
            if "weight_scale_2" in stored or kind in ("u8", "f8_e4m3"):
                found = Described("only " + ", ".join(sorted(stored)))
                raise ConfigError(f"fields of {module.name}", found, "weight_scale as well")
            return None
        if len(shape) != 2 or not all(shape):
            raise ConfigError(f"weight of {module.name}", Described(f"{kind} of shape {shape}"), "a matrix")
        if kind == "u8" and "weight_scale_2" in stored:
            return _floats4(module, (shape[0], shape[1]))
        if kind == "f8_e4m3":
            return _floats8(module, (shape[0], shape[1]))
        found = Described(f"{kind or 'no weight'} with {', '.join(sorted(stored))}")
        raise ConfigError(f"weight of {module.name}", found, "NVFP4 or FP8", _INSTEAD)


def _floats4(module: ModuleFields, shape: tuple[int, int]) -> tuple[Packer, tuple[int, int]]:
    rows, columns = shape[0], 2 * shape[1]
    packer = NvidiaPacker()
    scales, kind = module.stored["weight_scale"]
    if scales != (rows, columns // 16) or kind != "f8_e4m3" or packer.veto((rows, columns)):
        found = Described(f"{kind} of shape {scales} beside a weight of shape {shape}")
        expected = "f8_e4m3, one for each 16 columns"
        raise ConfigError(f"weight_scale of {module.name}", found, expected, _INSTEAD)
    whole, kind = module.stored["weight_scale_2"]
    if whole not in ((), (1,), (1, 1)) or kind not in ("f32", "bf16", "f16"):
        found = Described(f"{kind} of shape {whole}")
        raise ConfigError(f"weight_scale_2 of {module.name}", found, "one f32", _INSTEAD)
    return packer, (rows, columns)


def _floats8(module: ModuleFields, shape: tuple[int, int]) -> tuple[Packer, tuple[int, int]]:
    rows, columns = shape
    found, kind = module.stored["weight_scale"]
    if kind not in ("f32", "bf16", "f16"):
        raise ConfigError(f"weight_scale of {module.name}", kind, "f32", _INSTEAD)
    blocks = (-(-rows // 128), -(-columns // 128))
    shapes = {"tensor": ((), (1,), (1, 1)), "channel": ((rows,), (rows, 1)), "block": (blocks,)}
    for strategy, fits in shapes.items():
        if found in fits:
            return FloatPacker(strategy), shape
    expected = f"one scale, ({rows},) or {blocks} for a weight of {shape}"
    raise ConfigError(f"weight_scale of {module.name}", Described(f"shape {found}"), expected, _INSTEAD)
