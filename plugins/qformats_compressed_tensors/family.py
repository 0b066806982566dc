"""The family ``compressed-tensors``: names of its variants, and what its folders declare."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from qformats import Family, Packer
from qformats.interfaces import ModuleFields, Place, Scheme, Step
from qformats_compressed_tensors.activations import place, schemes, step, with_steps
from qformats_compressed_tensors.floats import FloatPacker
from qformats_compressed_tensors.integers import (
    BITS,
    FAMILY,
    BytePacker,
    IntegerPacker,
    OrderedPacker,
    PackedPacker,
)
from qformats_compressed_tensors.microscaling import MicroscalingPacker
from qformats_compressed_tensors.modules import FIELDS, examine
from qformats_compressed_tensors.nvfp4 import NvidiaPacker
from qformats_compressed_tensors.scheme import Declared, declared

__all__ = ["CompressedTensors"]

_VARIANT = re.compile(r"(w[234568]a16|w8a8)-(channel|[1-9]\d{0,8}g)((?:-(?:asym|actorder|f16|bf16|f32))*)")
_FLOATS = re.compile(r"fp8-(channel|block|tensor)(?:-(bf16|f16|f32))?")
_EMBEDDING = re.compile(r"(?:^|\.)(?:wte|wpe|embed_\w+|\w*embeddings?)$")
"""Modules that are looked up: other programs replace linear modules only."""
_SERVED = (4, 8)
"""Widths of integers in vLLM (compressed_tensors_wNa16.py)."""
_VERSION = "0.20.0"
"""Version of the library whose layouts are written."""
_ACTIVATIONS = "says how activations are quantized, and weights do without it"


class CompressedTensors(Family):
    """Widths and groups in use; :meth:`parse` takes any group."""

    name = FAMILY
    packers = (
        PackedPacker(4, 128),
        PackedPacker(4, 128, symmetric=False),
        PackedPacker(4, 64),
        PackedPacker(4, 32),
        PackedPacker(4, 0),
        PackedPacker(8, 128),
        PackedPacker(8, 32),
        PackedPacker(8, 0),
        BytePacker(0),
        FloatPacker("channel"),
        FloatPacker("block"),
        FloatPacker("tensor"),
        MicroscalingPacker(),
        NvidiaPacker(),
    )
    other_names = ("compressed_tensors", "llm-compressor", "llmcompressor", "ct")
    programs = ("vllm", "transformers")
    aliases = MappingProxyType(
        {
            **{f"w{bits}a16": f"w{bits}a16-128g" for bits in BITS},
            **{f"w{bits}a16-asym": f"w{bits}a16-128g-asym" for bits in (4, 8)},
            "w4a16_asym": "w4a16-128g-asym",
            "w8a8": "w8a8-channel",
            "fp8": "fp8-channel",
            "fp8_dynamic": "fp8-channel",
            "fp8_block": "fp8-block",
            "mxfp4a16": "mxfp4",
            "nvfp4a16": "nvfp4",
        }
    )
    asides = MappingProxyType(
        dict.fromkeys(
            (
                *("input_scale", "input_zero_point", "input_global_scale"),
                *("output_scale", "output_zero_point", "k_scale", "v_scale", "q_scale"),
            ),
            _ACTIVATIONS,
        )
    )

    def hub_name(self, packer: Packer) -> str:
        """``quantized.w4a16``, as vendors publish it."""
        return "quantized." + packer.spec.variant.removesuffix("-128g")

    def parse(self, variant: str) -> Packer:
        """Packer of a name such as ``w4a16-64g-asym``; ``channel`` stands for the whole row."""
        lowered = variant.lower()
        if lowered == "mxfp4":
            return MicroscalingPacker()
        if lowered == "nvfp4":
            return NvidiaPacker()
        floats = _FLOATS.fullmatch(lowered)
        if floats:
            return FloatPacker(floats[1], floats[2] or "f32")
        found = _VARIANT.fullmatch(lowered)
        flags = found[3].split("-")[1:] if found else []
        dtypes = [flag for flag in flags if flag in ("f16", "bf16", "f32")]
        bytes_ = found is not None and found[1] == "w8a8"
        if found is None or len({*flags}) < len(flags) or len(dtypes) > 1 or (bytes_ and "actorder" in flags):
            patterns = [
                "w{2,3,4,5,6,8}a16-{columns}g|channel[-asym][-bf16|-f32]",
                "w8a8-channel[-asym]",
                "fp8-channel|block|tensor[-bf16|-f16]",
            ]
            raise self.unknown(variant, patterns)
        group = 0 if found[2] == "channel" else int(found[2][:-1])
        symmetric, dtype = "asym" not in flags, [*dtypes, "f16"][0]
        if bytes_:
            return BytePacker(group, symmetric, dtype)
        kind = OrderedPacker if "actorder" in flags else PackedPacker
        return kind(int(found[1][1]), group, symmetric, dtype)

    def detect(self, quantization_config: Mapping[str, Any]) -> Packer | None:
        """Packer of most modules of such a folder; :meth:`locate` decides for each one."""
        found = declared(quantization_config)
        if found is None:
            return None
        first = next((scheme for scheme in found.schemes if scheme.bits), None)
        bits = first.bits if first and first.bits in BITS and first.kind == "int" else 4
        assert bits is not None
        packer = PackedPacker(bits, (first.group_size if first else None) or 0)
        packer.declared = found
        return packer

    def to_config(
        self,
        packer: Packer,
        *,
        dense_modules: Sequence[str] = (),
        packed_modules: Sequence[str] = (),
        dtype: str = "float32",
    ) -> dict[str, Any]:
        """``quantization_config`` as the library writes it, for one group of all linear modules that are not plain."""
        return _declaration({"group_0": (packer, ["Linear"])}, dense_modules)

    def to_mixed_config(
        self, packer: Packer, packed: Mapping[str, Packer], *, dense_modules: Sequence[str], dtype: str
    ) -> dict[str, Any]:
        """The same with a group for each format: modules of others than the requested one by their names."""
        groups: dict[str, tuple[Packer, list[str]]] = {"group_0": (packer, ["Linear"])}
        number = {packer.name: "group_0"}
        for name, own in packed.items():
            if own.name == packer.name:
                continue
            key = number.setdefault(own.name, f"group_{len(number)}")
            groups.setdefault(key, (own, []))[1].append(name)
        return _declaration(groups, dense_modules)

    def limits(self, packed_modules: Sequence[str]) -> str:
        """Embeddings, which only qformats loads: the group that is declared is that of linear modules."""
        found = [name for name in packed_modules if _EMBEDDING.search(name)]
        told = " and ".join(found) + (" is" if len(found) == 1 else " are")
        return f"{told} quantized, which qformats loads; vLLM and Transformers do not" if found else ""

    def refusal(self, program: str, packed: Mapping[str, Packer]) -> str:
        """Also widths that a program has no kernel for."""
        odd = [p.name for p in packed.values() if isinstance(p, IntegerPacker) and p.bits not in _SERVED]
        if program == "vllm" and odd:
            return f"of packed integers it has kernels for 4 and 8 bits, not for {odd[0]}"
        return super().refusal(program, packed)

    def schemes(self, quantization_config: Mapping[str, Any]) -> tuple[Scheme, ...]:
        """Of inputs and outputs, by group, and of the cache."""
        return schemes(quantization_config)

    def step(self, name: str, packer: Packer | None, quantization_config: Mapping[str, Any]) -> Step | None:
        """``input_scale``, ``input_global_scale``, and those of the cache."""
        return step(name, packer, quantization_config)

    def place(self, step: Step, packer: Packer | None) -> Place | None:
        """Beside the module, or the attention."""
        return place(step, packer)

    def with_steps(
        self, quantization_config: Mapping[str, Any], steps: Sequence[Step], source: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What groups say of activations: static where numbers are there, else as a source of the same kind has it."""
        return with_steps(quantization_config, steps, source)

    def suffixes(self, packer: Packer) -> frozenset[str]:
        """Names of all layouts."""
        return frozenset(FIELDS)

    def locate(self, packer: Packer, module: ModuleFields) -> tuple[Packer, tuple[int, int]] | None:
        """Format and shape of the weight of a module, by its tensors before what is declared."""
        known = packer.declared if isinstance(packer, IntegerPacker) else Declared()
        return examine(module, known)


def _declaration(
    groups: Mapping[str, tuple[Packer, list[str]]], dense_modules: Sequence[str]
) -> dict[str, Any]:
    found = {name: _group(packer, targets) for name, (packer, targets) in groups.items()}
    formats = {group["format"] for group in found.values()}
    config: dict[str, Any] = {
        "quant_method": FAMILY,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": found,
        "ignore": list(dense_modules),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        "version": _VERSION,
        "sparsity_config": {},
        "transform_config": {},
    }
    packers = [packer for packer, _ in groups.values()]
    if any(isinstance(packer, PackedPacker) and not packer.symmetric for packer in packers):
        # Transformers expects zero points that are not packed unless it dequantizes: measured with 5.23.
        config["dequantize"] = True
    return config


def _group(packer: Packer, targets: list[str]) -> dict[str, Any]:
    """Scheme of the modules that `targets` name."""
    assert isinstance(packer, IntegerPacker | FloatPacker | MicroscalingPacker | NvidiaPacker)
    inputs = None
    if isinstance(packer, FloatPacker):
        weights = _arguments(8, True, "float") | {"strategy": packer.strategy}
        inputs = _arguments(8, True, "float") | {"strategy": "token", "dynamic": True}
        if packer.strategy == "block":
            weights["block_structure"] = list(packer.block)
            inputs |= {"strategy": "group", "group_size": packer.block[1]}
    elif isinstance(packer, MicroscalingPacker):
        # As the preset MXFP4A16 has it.
        weights = _arguments(4, True, "float") | {"strategy": "group", "group_size": packer.spec.block_size}
        weights |= {"scale_dtype": "torch.uint8", "zp_dtype": "torch.uint8"}
    elif isinstance(packer, NvidiaPacker):
        # As the preset NVFP4A16 has it: activations stay as they are, for which no scale is known.
        weights = _arguments(4, True, "float") | {
            "strategy": "tensor_group",
            "group_size": packer.spec.block_size,
        }
        weights |= {"scale_dtype": "torch.float8_e4m3fn", "zp_dtype": "torch.float8_e4m3fn"}
    else:
        weights = _arguments(packer.bits, packer.symmetric)
        weights |= {"strategy": "group" if packer.group_size else "channel"}
        weights["group_size"] = packer.group_size or None
        if isinstance(packer, BytePacker):
            inputs = _arguments(8, symmetric=True) | {"strategy": "token", "dynamic": True}
    weights["observer"] = "minmax"
    return {
        "targets": targets,
        "weights": weights,
        "input_activations": inputs,
        "output_activations": None,
        "format": packer.layout,
    }


def _arguments(bits: int, symmetric: bool, kind: str = "int") -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": kind,
        "symmetric": symmetric,
        "group_size": None,
        "strategy": None,
        "dynamic": False,
    }
