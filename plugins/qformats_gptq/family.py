"""The family ``gptq``: names of its variants, and what folders of AutoGPTQ and GPTQModel declare."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from qformats import Family, Packer
from qformats.errors import ConfigError, Described
from qformats.interfaces import ModuleFields, Scheme
from qformats_gptq.config import Declared, declared, overridden, overrides, written
from qformats_gptq.elsewhere import KNOWN, SIMILAR, recognized
from qformats_gptq.modules import Found, declaration, examine
from qformats_gptq.packers import FAMILY, GPTQPacker, Reading

__all__ = ["GPTQFamily"]

_VARIANT = re.compile(r"([2348])bit-(-1|[1-9]\d{0,8})g((?:-(?:actorder|sym|asym|f16|bf16|f32))*)")
_EMBEDDING = re.compile(r"(?:^|\.)(?:wte|wpe|embed_\w+|\w*embeddings?)$")
"""Modules that are looked up: other programs replace linear modules only."""
_USUAL = 128
"""Columns of a group in the default variant."""


class GPTQFamily(Family):
    """Widths and groups in use; :meth:`parse` takes any group, order and zero points for each of them."""

    name = FAMILY
    packers = (
        *(GPTQPacker(bits, group) for bits in (4, 8, 3, 2) for group in (_USUAL, 64, 32, 1024, 0)),
        GPTQPacker(4, _USUAL, symmetric=False),
        GPTQPacker(4, _USUAL, actorder=True),
        GPTQPacker(4, _USUAL, actorder=True, symmetric=False),
    )
    other_names = ("autogptq", "auto-gptq", "gptqmodel")
    programs = ("vllm", "transformers")
    aliases = MappingProxyType(
        {
            f"{kind.format(bits)}": f"{bits}bit-{_USUAL}g"
            for kind in ("{}bit", "int{}")
            for bits in (2, 3, 4, 8)
        }
    )
    similar = MappingProxyType(SIMILAR)
    known = MappingProxyType(KNOWN)
    config_files = ("quantize_config.json", "quant_config.json")

    def hub_name(self, packer: Packer) -> str:
        """``GPTQ-4bit-128g``."""
        return f"GPTQ-{packer.spec.variant}"

    def parse(self, variant: str) -> GPTQPacker:
        """Packer of a name such as ``4bit-128g-actorder-asym``; ``-1g`` stands for the whole row."""
        found = _VARIANT.fullmatch(variant.lower())
        flags = found[3].split("-")[1:] if found else []
        dtypes = [flag for flag in flags if flag in ("f16", "bf16", "f32")]
        if found is None or len({*flags}) < len(flags) or {"sym", "asym"} <= {*flags} or len(dtypes) > 1:
            raise self.unknown(
                variant, ["{2,3,4,8}bit-{columns of a group}g[-actorder][-asym][-f16|bf16|f32]"]
            )
        group = max(int(found[2]), 0)
        return GPTQPacker(int(found[1]), group, "actorder" in flags, "asym" not in flags, [*dtypes, "f16"][0])

    def detect(self, quantization_config: Mapping[str, Any]) -> GPTQPacker | None:
        """Packer of most modules of such a folder; :meth:`locate` decides for each one."""
        found = declared(quantization_config)
        if found is None:
            return None
        packer = GPTQPacker(
            found.bits or 4, found.group_size or 0, found.actorder, found.symmetric is not False
        )
        packer.reading = Reading(
            found.version,
            group_size=found.group_size,
            symmetric=found.symmetric,
            inorder=found.inorder,
            overrides=overrides(quantization_config),
        )
        zeros = quantization_config.get("zeros")
        # No program writes such an entry: it is for users who know.
        return packer if zeros is None else packer.reading_as(found.version, str(zeros))

    def undeclared(self, module: ModuleFields) -> dict[str, Any] | None:
        """What a folder with such a module would declare."""
        return declaration(module)

    def foreign(self, module: ModuleFields) -> str:
        """Formats of other programs that no plugin here reads."""
        return recognized(module.stored)

    def to_config(
        self,
        packer: Packer,
        *,
        dense_modules: Sequence[str] = (),
        packed_modules: Sequence[str] = (),
        dtype: str = "float32",
    ) -> dict[str, Any]:
        """``quantization_config`` as AutoGPTQ, GPTQModel and Transformers read it."""
        assert isinstance(packer, GPTQPacker)
        found = Declared(packer.bits, packer.group_size, packer.symmetric, packer.actorder, packer.version)
        return written(found, dense_modules, packed_modules)

    def to_mixed_config(
        self, packer: Packer, packed: Mapping[str, Packer], *, dense_modules: Sequence[str], dtype: str
    ) -> dict[str, Any]:
        """The same, with an entry of ``dynamic`` for each module that is in another format.

        Raises
        ------
        ConfigError
            If some have zero points and others do not: folders say once how all of them are stored.
        """
        assert isinstance(packer, GPTQPacker)
        config = self.to_config(packer, dense_modules=dense_modules, packed_modules=list(packed), dtype=dtype)
        others = {}
        for name, own in packed.items():
            assert isinstance(own, GPTQPacker)
            if own.version != packer.version:
                found = Described(f"{own.name} for {name} beside {packer.name}")
                expected = "zero points of one kind: GPTQ folders say once how they are stored"
                raise ConfigError("type", found, expected, "make all of them -asym, or none")
            if own.name != packer.name:
                others[f"+:^{re.escape(name)}$"] = {
                    "bits": own.bits,
                    "group_size": own.group_size or -1,
                    "sym": own.symmetric,
                    "desc_act": own.actorder,
                }
        return config | {"dynamic": others | config.get("dynamic", {})}

    def refusal(self, program: str, packed: Mapping[str, Packer]) -> str:
        """Also several formats in a folder, which Transformers' configuration has no words for."""
        names = {own.name for own in packed.values()}
        if program == "transformers" and len(names) > 1:
            return "it takes one width and group for all modules of a GPTQ folder"
        return super().refusal(program, packed)

    def limits(self, packed_modules: Sequence[str]) -> str:
        """Embeddings, which only qformats loads, and the head, which not all programs do."""
        found = [module for module in packed_modules if _EMBEDDING.search(module)]
        told = " and ".join(found) + (" is" if len(found) == 1 else " are")
        if found:
            return f"{told} quantized, which qformats loads; Transformers and GPTQModel do not"
        if "lm_head" in packed_modules:
            return "lm_head is quantized, which qformats and GPTQModel load; Transformers does not"
        return ""

    def extra_files(self, packer: Packer, quantization_config: Mapping[str, Any]) -> dict[str, bytes]:
        """More files of a folder with this ``quantization_config``: loaders like AutoGPTQ's look for their own."""
        text = json.dumps(quantization_config, indent=2, ensure_ascii=False) + "\n"
        return {self.config_files[0]: text.encode("utf-8", "backslashreplace")}

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
        """Names of the fields, and the bias."""
        return frozenset((*(field.name for field in packer.spec.fields), "bias"))

    def locate(self, packer: Packer, module: ModuleFields) -> tuple[Packer, tuple[int, int]] | None:
        """Format and shape of the weight of a module, by its tensors rather than by what is declared."""
        assert isinstance(packer, GPTQPacker)
        reading = packer.reading
        known = reading.version is not None
        size = reading.group_size if known else packer.group_size
        symmetric = reading.symmetric if known else packer.symmetric
        bits = packer.bits
        if reading.overrides:
            bits, size, symmetric = overridden(reading.overrides, module.name, (bits, size, symmetric))
        found = examine(module, bits, size, symmetric, reading.version)
        if found is None:
            return None
        _tell_order(module.name, found, reading.inorder)
        own = GPTQPacker(found.bits, found.group_size, not found.ordered, found.symmetric, found.scale_dtype)
        own.reading = replace(reading, version=found.version or "gptq", labelled=found.version is not None)
        return own, found.shape

    def separate(self, packer: Packer, module: ModuleFields) -> frozenset[str]:
        """The bias, unless it is all zeros: AutoGPTQ gives one to every module."""
        return frozenset(["bias"] if "bias" in module.stored and any(module.read("bias")) else [])


def _tell_order(name: str, found: Found, inorder: bool) -> None:
    """Warn of a ``g_idx`` that AutoGPTQ's kernels ignore and others do not, as measured with its version 0.7.1.

    Without ``desc_act`` its CUDA and exllama layers take columns in order; exllamav2 does so if all indices are 0.
    """
    if found.ordered or not (inorder or found.flat):
        return
    told = "is all zeros" if found.flat else "reorders columns, although desc_act is declared false"
    warnings.warn(
        f"GPTQ: g_idx of {name} {told}: it is followed, as by GPTQModel; some kernels of AutoGPTQ ignore it and read "
        "other weights. If this model was made for those, remove g_idx from its files",
        UserWarning,
        stacklevel=2,
    )
