"""The family ``fp8``: names of its variants, and what folders of DeepSeek, Qwen and FBGEMM declare."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from qformats import Family, Packer
from qformats.errors import ConfigError, Described
from qformats.interfaces import ModuleFields, Place, Scheme, Step
from qformats_fp8.packers import FAMILY, NAMES, POWERS, USUAL, BlockPacker, WholePacker

__all__ = ["FP8"]

_VARIANT = re.compile(r"block(?:-([1-9]\d{0,8})x([1-9]\d{0,8}))?(?:-(f32|bf16|f16|ue8m0))?")
_WHOLE = re.compile(r"(tensor|channel)(?:-(f32|bf16|f16))?")
_METHODS = ("fp8", "fbgemm_fp8")
_SCALES = ("f32", "bf16", "f16")
_EXPONENTS = ("f8_e8m0", "u8")
"""dtypes of scales that are powers of two, stored as their exponents."""
_CACHE = {"k_scale": "key", "v_scale": "value"}
_EMBEDDING = re.compile(r"(?:^|\.)(?:wte|wpe|embed_\w+|\w*embeddings?)$")
_ACTIVATIONS = "a scale of FP8 activations, which weights do without"
_INSTEAD = "dequantize the model to bf16 with the program that made it, or use its bf16 original"


class FP8(Family):
    """Blocks of 128 x 128 are written, with scales in float32 or powers of two; a scale per tensor or row is read."""

    name = FAMILY
    packers = (BlockPacker(), BlockPacker(scale_dtype=POWERS), WholePacker("tensor"), WholePacker("channel"))
    other_names = ("deepseek-fp8", "finegrained-fp8")
    programs = ("vllm", "transformers")
    asides = MappingProxyType(
        dict.fromkeys(
            ("input_scale", "activation_scale", "input_scale_ub", "k_scale", "v_scale"), _ACTIVATIONS
        )
    )

    def hub_name(self, packer: Packer) -> str:
        """``FP8``, as vendors publish it."""
        return "FP8"

    def parse(self, variant: str) -> Packer:
        """Packer of a name such as ``block-64x64``; ``block`` alone is one of 128 x 128."""
        lowered = variant.lower()
        found, whole = _VARIANT.fullmatch(lowered), _WHOLE.fullmatch(lowered)
        if whole:
            return WholePacker(whole[1], scale_dtype=whole[2] or "f32")
        if found is None:
            raise self.unknown(variant, ["block[-{rows}x{columns}][-bf16|-f16|-ue8m0]"])
        block = (int(found[1]), int(found[2])) if found[1] else USUAL
        dtypes = {name: dtype for dtype, name in NAMES.items()}
        return BlockPacker(block, dtypes.get(found[3], found[3]) or "f32")

    def detect(self, quantization_config: Mapping[str, Any]) -> Packer | None:
        """Packer of most modules of such a folder; :meth:`locate` decides for each one."""
        method = str(quantization_config.get("quant_method", "")).lower()
        if method not in _METHODS:
            return None
        form = quantization_config.get("fmt")
        if form not in (None, "e4m3", "float8_e4m3fn"):
            raise ConfigError("fmt", form, "e4m3", _INSTEAD)
        size = quantization_config.get("weight_block_size")
        if size is None:
            packer = BlockPacker()
            packer.declared_block = None
            return packer
        if (
            not isinstance(size, list)
            or len(size) != 2
            or not all(type(each) is int and 0 < each < 1 << 31 for each in size)
        ):
            raise ConfigError("weight_block_size", size, "two whole numbers, such as [128, 128]")
        packer = BlockPacker((size[0], size[1]))
        packer.declared_block = packer.block
        return packer

    def to_config(
        self,
        packer: Packer,
        *,
        dense_modules: Sequence[str] = (),
        packed_modules: Sequence[str] = (),
        dtype: str = "float32",
    ) -> dict[str, Any]:
        """``quantization_config`` with the keys of Transformers."""
        assert isinstance(packer, BlockPacker)
        return {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "weight_block_size": list(packer.block),
            "modules_to_not_convert": list(dense_modules) or None,
            **({"scale_fmt": NAMES[POWERS]} if packer.scale_dtype == POWERS else {}),
        }

    def limits(self, packed_modules: Sequence[str]) -> str:
        """Embeddings, which only qformats loads."""
        found = [name for name in packed_modules if _EMBEDDING.search(name)]
        told = " and ".join(found) + (" is" if len(found) == 1 else " are")
        return f"{told} quantized, which qformats loads; vLLM and Transformers do not" if found else ""

    def schemes(self, quantization_config: Mapping[str, Any]) -> tuple[Scheme, ...]:
        """Inputs in FP8: with scales of the folder where ``activation_scheme`` is ``static``."""
        method = str(quantization_config.get("quant_method", "")).lower()
        if method not in _METHODS:
            return ()
        static = str(quantization_config.get("activation_scheme")).lower() == "static"
        return (Scheme("input", "fp8", dynamic=not static),)

    def step(self, name: str, packer: Packer | None, quantization_config: Mapping[str, Any]) -> Step | None:
        """``input_scale`` of a module with one scale, and ``k_scale`` and ``v_scale`` of FP8 caches."""
        module, _, field = name.rpartition(".")
        if field in _CACHE:
            return Step(_CACHE[field], "fp8", module.removesuffix(".k_proj").removesuffix(".v_proj"))
        static = str(quantization_config.get("activation_scheme")).lower() == "static"
        if static and field in ("input_scale", "activation_scale") and isinstance(packer, WholePacker):
            return Step("input", "fp8", module)
        return None

    def place(self, step: Step, packer: Packer | None) -> Place | None:
        """Those of the cache, beside the attention; blocks take inputs whose scales are found as the model runs."""
        fields = {role: field for field, role in _CACHE.items()}
        if step.numbers == "fp8" and step.role in fields:
            return Place(f"{step.module}.{fields[step.role]}")
        return None

    def suffixes(self, packer: Packer) -> frozenset[str]:
        """The weight, and both names of scales."""
        return frozenset(("weight", "weight_scale_inv", "weight_scale"))

    def locate(self, packer: Packer, module: ModuleFields) -> tuple[Packer, tuple[int, int]] | None:
        """Format and shape of the weight of a module: blocks as declared, never as shapes would have it."""
        stored = module.stored
        scales = [name for name in ("weight_scale_inv", "weight_scale") if name in stored]
        shape, dtype = stored.get("weight", ((), ""))
        # Others are no matrices of this format: what reads plain folders takes them, or says what is wrong.
        if dtype != "f8_e4m3" or len(shape) != 2 or len(scales) != 1 or not all(shape):
            return None
        rows, columns = shape
        name = scales[0]
        found, kind = stored[name]
        if kind not in (*_SCALES, *_EXPONENTS):
            expected = " or ".join((*_SCALES, *_EXPONENTS))
            raise ConfigError(f"{name} of {module.name}", kind, expected, _INSTEAD)
        floats = kind if kind in _SCALES else POWERS
        block = packer.declared_block if isinstance(packer, BlockPacker) else USUAL
        if floats == POWERS and (block is None or name == "weight_scale"):
            expected = "floats; exponents belong to blocks, in weight_scale_inv"
            raise ConfigError(
                f"{name} of {module.name}", Described(f"{kind} of shape {found}"), expected, _INSTEAD
            )
        if block is None and found in ((), (1,), (1, 1)):
            return WholePacker("tensor", name, floats), (rows, columns)
        if name == "weight_scale" and found in ((rows,), (rows, 1)):
            return WholePacker("channel", name, floats), (rows, columns)
        if name == "weight_scale":
            return None
        block = block or USUAL
        wanted = (-(-rows // block[0]), -(-columns // block[1]))
        if found != wanted:
            expected = f"{wanted}, for blocks of {block[0]} x {block[1]} in {(rows, columns)}"
            raise ConfigError(f"{name} of {module.name}", Described(f"shape {found}"), expected, _INSTEAD)
        return BlockPacker(block, floats), (rows, columns)
