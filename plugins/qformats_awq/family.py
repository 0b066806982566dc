"""The family ``awq``: names of its variants, and what folders of AutoAWQ declare."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from qformats import Family, Packer
from qformats.errors import ConfigError
from qformats.interfaces import ModuleFields, Scheme, Values
from qformats_awq.modules import USUAL, ZEROS, examine
from qformats_awq.packers import FAMILY, AWQPacker, FastPacker

__all__ = ["AWQFamily"]

_VARIANT = re.compile(r"4bit-(-1|[1-9]\d{0,8})g(-gemv_fast)?(?:-(f16|bf16|f32))?")
_USUAL = 128
_EMBEDDING = re.compile(r"(?:^|\.)(?:wte|wpe|embed_\w+|\w*embeddings?)$")
"""Modules that are looked up: other programs replace linear modules only."""
_VERSIONS = ("gemm", "gemv", "gemv_fast", "llm-awq", "exllama", "ipex")
"""What ``version`` may say; exllama and ipex are kernels for what is stored as gemm."""
_AUTO_ROUND = re.compile(r"(?:intel/)?auto[-_]round")


class AWQFamily(Family):
    """Groups in use; :meth:`parse` takes any group."""

    name = FAMILY
    packers = (AWQPacker(128), AWQPacker(64), AWQPacker(32), FastPacker(128))
    other_names = ("autoawq", "auto-awq")
    programs = ("vllm", "transformers")
    aliases = MappingProxyType({"gemm": f"4bit-{_USUAL}g"})
    config_files = ("quant_config.json", "quantize_config.json")

    def hub_name(self, packer: Packer) -> str:
        """``AWQ``, or ``AWQ-4bit-64g``."""
        variant = packer.spec.variant
        return "AWQ" if variant == f"4bit-{_USUAL}g" else f"AWQ-{variant}"

    def parse(self, variant: str) -> Packer:
        """Packer of a name such as ``4bit-64g``; ``-1g`` stands for the whole row."""
        found = _VARIANT.fullmatch(variant.lower())
        if found is None or (found[2] and int(found[1]) < 1):
            raise self.unknown(variant, ["4bit-{columns of a group}g[-gemv_fast][-f16|bf16|f32]"])
        group, dtype = max(int(found[1]), 0), found[3] or "f16"
        return FastPacker(group, dtype) if found[2] else AWQPacker(group, dtype)

    def detect(self, quantization_config: Mapping[str, Any]) -> Packer | None:
        """Packer of most modules of such a folder; :meth:`locate` decides for each one."""
        config = quantization_config
        method = str(config.get("quant_method", "")).lower()
        if _AUTO_ROUND.fullmatch(method):
            layout = str(config.get("packing_format") or config.get("backend") or "")
            if not re.search(r"(?:auto_|:)awq", layout):
                return None
        elif method and method != "awq":
            return None
        elif not method and not {"zero_point", "w_bit"} <= config.keys():
            # Files of AutoAWQ beside config.json do not name the method.
            return None
        else:
            version = str(config.get("version") or config.get("format") or "gemm").lower()
            if version not in _VERSIONS:
                hint = "Save the model again in version gemm with the program that wrote it"
                raise ConfigError("version", version, " or ".join(_VERSIONS[:4]), hint)
        values = Values(config)
        bits = values.integer("bits" if "bits" in config else "w_bit", 4)
        if bits != 4:
            raise ConfigError("bits", bits, "4, which is all that AWQ's layouts hold")
        key = "group_size" if "group_size" in config else "q_group_size"
        group = values.integer(key, _USUAL)
        if not -1 <= group < 1 << 31:
            raise ConfigError(key, group, "-1 (the whole row) or the number of columns of a group")
        packer = AWQPacker(max(group, 0))
        packer.declared_group = max(group, 0)
        return packer

    def undeclared(self, module: ModuleFields) -> dict[str, Any] | None:
        """What a folder with such a module would declare: eight outputs to a word are AWQ's alone.

        So are the offsets of llm-awq, whose files declare nothing.
        """
        own = "scaled_zeros" in module.stored
        if not {"qweight", "scaled_zeros" if own else "qzeros", "scales"} <= module.stored.keys():
            return None
        try:
            found = examine(module, None)
        except ConfigError:
            # Of another method, or broken: whoever it belongs to says so.
            return None
        if found is None or found.layout != ("gemv_fast" if own else "gemm"):
            return None
        group, columns = found.group_size, found.shape[1]
        if own:
            return _declaration(group, None) | {"version": "llm-awq"}
        return _declaration(0 if group == columns and group not in USUAL else group, None)

    def to_config(
        self,
        packer: Packer,
        *,
        dense_modules: Sequence[str] = (),
        packed_modules: Sequence[str] = (),
        dtype: str = "float32",
    ) -> dict[str, Any]:
        """``quantization_config`` with the keys of AutoAWQ.

        Programs that match entries of ``modules_to_not_convert`` anywhere in a name would leave out more modules than
        are plain if one of those names contained an entry; that is said in a warning.
        """
        assert isinstance(packer, AWQPacker)
        skipped = list(dense_modules) if any(name != "lm_head" for name in dense_modules) else None
        for entry in skipped or ():
            taken = next((name for name in packed_modules if entry in name), None)
            if taken is not None:
                warnings.warn(
                    f"{entry} stays plain and is part of the name of {taken}, which does not: AutoAWQ and vLLM leave "
                    "out both, Transformers only the former",
                    UserWarning,
                    stacklevel=2,
                )
        return _declaration(packer.group_size, skipped)

    def limits(self, packed_modules: Sequence[str]) -> str:
        """Embeddings and the head, which only qformats loads: AutoAWQ quantizes linear modules of blocks."""
        found = [name for name in packed_modules if _EMBEDDING.search(name) or name == "lm_head"]
        told = " and ".join(found) + (" is" if len(found) == 1 else " are")
        if found:
            return f"{told} quantized, which qformats loads; AutoAWQ, Transformers and vLLM do not"
        return ""

    def schemes(self, quantization_config: Mapping[str, Any]) -> tuple[Scheme, ...]:
        """Inputs as AutoRound declares them: ``act_bits`` of fewer than 16."""
        bits = quantization_config.get("act_bits")
        if type(bits) is not int or bits >= 16 or self.detect(quantization_config) is None:
            return ()
        kind = str(quantization_config.get("act_data_type") or "int")
        found = (
            f"int{bits}" if kind.startswith("int") else "fp8" if kind.startswith("fp") and bits == 8 else kind
        )
        return (Scheme("input", found, dynamic=quantization_config.get("act_dynamic") is not False),)

    def suffixes(self, packer: Packer) -> frozenset[str]:
        """Names of all layouts, and the bias."""
        return frozenset(("qweight", "scales", *ZEROS, "bias"))

    def locate(self, packer: Packer, module: ModuleFields) -> tuple[Packer, tuple[int, int]] | None:
        """Format and shape of the weight of a module, by its tensors rather than by what is declared."""
        declared = packer.declared_group if isinstance(packer, AWQPacker) else None
        found = examine(module, declared)
        if found is None:
            return None
        group = found.group_size
        if declared == 0 and group == found.shape[1]:
            group = 0
        if found.layout == "gemv_fast":
            return FastPacker(found.group_size, found.scale_dtype), found.shape
        own = AWQPacker(group, found.scale_dtype)
        own.turned = found.layout == "gemv"
        return own, found.shape

    def separate(self, packer: Packer, module: ModuleFields) -> frozenset[str]:
        """The bias, unless it is all zeros, which some programs give to every module."""
        return frozenset(["bias"] if "bias" in module.stored and any(module.read("bias")) else [])


def _declaration(group: int, skipped: list[str] | None) -> dict[str, Any]:
    """Keys and values in AutoAWQ's order."""
    return {
        "quant_method": "awq",
        "zero_point": True,
        "group_size": group or -1,
        "bits": 4,
        "version": "gemm",
        "modules_to_not_convert": skipped,
    }
