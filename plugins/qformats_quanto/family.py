"""The family ``quanto``: what folders of optimum-quanto hold.

Source: optimum-quanto:optimum/quanto/models/transformers_models.py, nn/qmodule.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from qformats import Family, Packer
from qformats.errors import ConfigError, Described
from qformats.interfaces import ModuleFields, Scheme
from qformats_quanto.packers import FAMILY, BytePacker, ShiftedPacker

__all__ = ["Quanto"]

_VARIANT = re.compile(r"(?:qint8|qint([42])(?:-([1-9]\d{0,8})g)?)(?:-(f32|bf16|f16))?")
_GROUPS = (128, 96, 64, 32)
"""Columns of a group: the first that divides rows of more than 128, if any does (``QModuleMixin.__init__``)."""
_SCALES = ("f32", "bf16", "f16")
_CODES, _SCALE, _SHIFT = "weight._data", "weight._scale", "weight._shift"
_INSTEAD = "use the model before it was quantized"
_ACTIVATIONS = "says how activations are quantized, and weights do without it"


class Quanto(Family):
    """A scale per row or group; read only."""

    name = FAMILY
    packers = (BytePacker(), ShiftedPacker(4, _GROUPS[0]), ShiftedPacker(2, _GROUPS[0]))
    other_names = ("optimum-quanto",)
    config_files = ("quanto_qmap.json",)
    asides = MappingProxyType(dict.fromkeys(("input_scale", "output_scale"), _ACTIVATIONS))

    def parse(self, variant: str) -> Packer:
        """Packer of a name such as ``qint4-f16``."""
        found = _VARIANT.fullmatch(variant.lower())
        if found is None:
            raise self.unknown(
                variant, ["qint8[-bf16|-f16]", "qint{4,2}[-{columns of a group}g][-bf16|-f16]"]
            )
        dtype = found[3] or "f32"
        return ShiftedPacker(int(found[1]), int(found[2] or 0), dtype) if found[1] else BytePacker(dtype)

    def detect(self, quantization_config: Mapping[str, Any]) -> Packer | None:
        """A packer of such folders, which declare a ``quant_method`` or have a map of modules beside config.json."""
        config = quantization_config
        mapped = bool(config) and all(isinstance(v, Mapping) and "weights" in v for v in config.values())
        return self.packers[0] if mapped or config.get("quant_method") == FAMILY else None

    def schemes(self, quantization_config: Mapping[str, Any]) -> tuple[Scheme, ...]:
        """Inputs, where ``activations`` names their dtype, for all modules or in the map of each."""
        maps = [quantization_config, *quantization_config.values()]
        words = [str(each.get("activations") or "none") for each in maps if isinstance(each, Mapping)]
        named = [word.removeprefix("q").split("_")[0] for word in words if word != "none"]
        numbers = dict.fromkeys("fp8" if word.startswith("float8") else word for word in named)
        return tuple(Scheme("input", each, dynamic=False) for each in numbers)

    def suffixes(self, packer: Packer) -> frozenset[str]:
        """Names of all layouts."""
        return frozenset((_CODES, f"{_CODES}._data", _SCALE, _SHIFT, "weight"))

    def locate(self, packer: Packer, module: ModuleFields) -> tuple[Packer, tuple[int, int]] | None:
        """Format and shape of the weight of a module, by its tensors."""
        stored = module.stored
        if not any(name.startswith("weight._") for name in stored):
            return None
        name = next((each for each in (_CODES, f"{_CODES}._data") if each in stored), None)
        if name is None or _SCALE not in stored:
            raise ConfigError(f"fields of {module.name}", sorted(stored), f"{_CODES} and {_SCALE}")
        (shape, kind), (scales, dtype) = stored[name], stored[_SCALE]
        if len(shape) != 2 or not all(shape) or dtype not in _SCALES:
            told = Described(f"{kind} of shape {shape}, scales in {dtype}")
            raise ConfigError(f"{name} of {module.name}", told, "a matrix", _INSTEAD)
        if name == _CODES and kind == "i8" and scales == (shape[0], 1) and _SHIFT not in stored:
            return BytePacker(dtype), (shape[0], shape[1])
        if kind == "u8" and stored.get(_SHIFT) == (scales, dtype) and scales[1:] == (1,):
            return self._shifted(module, shape, scales[0], dtype)
        fields = ", ".join(f"{field} {of[1]} {of[0]}" for field, of in sorted(stored.items()))
        raise ConfigError(
            f"fields of {module.name}", Described(fields), "those of qint8, qint4 or qint2", _INSTEAD
        )

    @staticmethod
    def _shifted(
        module: ModuleFields, shape: tuple[int, ...], rows: int, dtype: str
    ) -> tuple[Packer, tuple[int, int]]:
        parts = [each for each in (2, 4) if -(-rows // each) == shape[0]]
        if len(parts) != 1:
            told = Described(f"{shape[0]} rows of bytes for {rows} scales")
            raise ConfigError(f"fields of {module.name}", told, "2 or 4 codes in a byte")
        bits, width = 8 // parts[0], shape[1]
        whole = module.expected()
        if whole is None:
            if width not in _GROUPS:
                return ShiftedPacker(bits, 0, dtype), (rows, width)
            # Nothing that is stored tells rows from groups of rows.
            told = Described(f"{rows} groups of {width}, of a weight whose shape is not stored")
            raise ConfigError(
                f"fields of {module.name}", told, "a config.json that describes the model", _INSTEAD
            )
        group = 0 if width == whole[1] else width
        if whole[0] * whole[1] != rows * width or whole[1] % width:
            told = Described(f"{rows} groups of {width}")
            expected = f"those of {whole[0]} x {whole[1]} weights, as config.json has it"
            raise ConfigError(f"fields of {module.name}", told, expected)
        return ShiftedPacker(bits, group, dtype), whole
