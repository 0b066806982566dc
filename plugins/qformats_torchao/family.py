"""The family ``torchao``: what folders declare that Transformers has written with TorchAO.

Source: transformers:src/transformers/quantizers/quantizer_torchao.py; ao:torchao/prototype/safetensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qformats import Family, Packer
from qformats.errors import ConfigError, Described
from qformats.interfaces import ModuleFields, Scheme
from qformats_torchao.packers import FAMILY, Int8Packer

__all__ = ["TorchAO"]

_VARIANT = re.compile(r"int8(?:-([1-9]\d{0,8})g)?(?:-(f32|bf16|f16))?")
_SCALES = ("f32", "bf16", "f16")
_FIELDS = ("_weight_qdata", "_weight_scale", "_weight_zero_point")
_INSTEAD = "use the model before it was quantized"


class TorchAO(Family):
    """Bytes with a scale per row or group; read only."""

    name = FAMILY
    packers = (Int8Packer(),)
    other_names = ("ao",)

    def parse(self, variant: str) -> Packer:
        """Packer of a name such as ``int8-32g-bf16``."""
        found = _VARIANT.fullmatch(variant.lower())
        if found is None:
            raise self.unknown(variant, ["int8[-{columns of a group}g][-bf16|-f16]"])
        return Int8Packer(int(found[1] or 0), found[2] or "f32")

    def detect(self, quantization_config: Mapping[str, Any]) -> Packer | None:
        """A packer of such folders; :meth:`locate` decides for each module."""
        return self.packers[0] if quantization_config.get("quant_method") == FAMILY else None

    def schemes(self, quantization_config: Mapping[str, Any]) -> tuple[Scheme, ...]:
        """Inputs, where the name of a configuration has their numbers."""
        if quantization_config.get("quant_method") != FAMILY:
            return ()
        words = re.findall(
            r"(Int8|Float8|Int4)(Dynamic|Static)Activation", str(quantization_config.get("quant_type"))
        )
        found = [
            Scheme("input", {"Float8": "fp8"}.get(word, word.lower()), dynamic=kind == "Dynamic")
            for word, kind in words
        ]
        return tuple(dict.fromkeys(found))

    def suffixes(self, packer: Packer) -> frozenset[str]:
        """The fields, and those of layouts that are refused."""
        return frozenset((*_FIELDS, "_weight_act_pre_scale", "weight"))

    def locate(self, packer: Packer, module: ModuleFields) -> tuple[Packer, tuple[int, int]] | None:
        """Format and shape of the weight of a module, by its tensors."""
        stored = module.stored
        if not {*_FIELDS} & stored.keys():
            return None
        if not {*_FIELDS[:2]} <= stored.keys():
            raise ConfigError(f"fields of {module.name}", sorted(stored), " and ".join(_FIELDS[:2]))
        (shape, kind), (scales, dtype) = stored[_FIELDS[0]], stored[_FIELDS[1]]
        zeros = stored.get(_FIELDS[2], (scales, "i8"))
        rows, columns = shape if len(shape) == 2 else (0, 0)
        groups = scales[1] if len(scales) == 2 and scales[0] == rows else 0
        # Four bits have scales of the other orientation, and zero points that are floats.
        whole = (
            kind == "i8"
            and dtype in _SCALES
            and zeros == (scales, "i8")
            and "_weight_act_pre_scale" not in stored
        )
        if not (whole and rows and columns and groups and columns % groups == 0):
            told = ", ".join(
                f"{name} {stored[name][1]} {stored[name][0]}" for name in _FIELDS if name in stored
            )
            raise ConfigError(f"fields of {module.name}", Described(told), "those of Int8Tensor", _INSTEAD)
        return Int8Packer(0 if groups == 1 else columns // groups, dtype), (rows, columns)
