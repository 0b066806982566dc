"""The family ``mlx``: names of its variants, and what folders of mlx-lm declare.

Source: mlx-lm:mlx_lm/utils.py (``load_model``, ``quantize_model``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import copy
from types import MappingProxyType
from typing import Any

from qformats import Family, Packer
from qformats.errors import ConfigError, Described
from qformats.interfaces import ModuleFields
from qformats_mlx.floats import MODES
from qformats_mlx.packers import BITS, FAMILY, GROUPS, FolderPacker, MLXPacker

__all__ = ["MLX"]

_VARIANT = re.compile(r"([234568])bit-(32|64|128)g(?:-(f16|bf16|f32))?")
_USUAL, _USUAL_BITS = 64, 4
_KEYS = ("group_size", "bits", "mode")
_SCALES = ("f16", "bf16", "f32")


class MLX(Family):
    """Affine groups of every width and size that the program has, and its modes in floats."""

    name = FAMILY
    packers = (
        *(MLXPacker(bits, group) for bits in (4, 8, 2, 3, 6) for group in (64, 32, 128)),
        *MODES.values(),
    )
    other_names = ("mlx-lm", "mlx_lm")
    programs = ("mlx",)
    aliases = MappingProxyType({f"{bits}bit": f"{bits}bit-{_USUAL}g" for bits in BITS})
    config_keys = ("quantization",)

    def hub_name(self, packer: Packer) -> str:
        """``4bit``, as mlx-community publishes them."""
        return packer.spec.variant.removesuffix(f"-{_USUAL}g")

    def parse(self, variant: str) -> Packer:
        """Packer of a name such as ``4bit-64g-bf16`` or ``mxfp4``."""
        if variant.lower() in MODES:
            return MODES[variant.lower()]
        found = _VARIANT.fullmatch(variant.lower())
        if found is None:
            raise self.unknown(variant, ["{2,3,4,5,6,8}bit-{32,64,128}g[-bf16|-f32]"])
        return MLXPacker(int(found[1]), int(found[2]), found[3] or "f16")

    def detect(self, quantization_config: Mapping[str, Any]) -> Packer | None:
        """Packer of most modules of such a folder; :meth:`locate` decides for each one."""
        config = quantization_config
        if "quant_method" in config or not {"group_size", "bits"} <= config.keys():
            return None
        modules = {name: value for name, value in config.items() if name not in _KEYS}
        # Beside the three keys there are only modules; what else says bits and group_size is another program's.
        if not all(isinstance(value, bool | Mapping) for value in modules.values()):
            return None
        packer = copy(_declared(config, ""))
        packer.declared = {
            name: (_declared(value, f"{name}.") if value else None)
            for name, value in modules.items()
            if isinstance(value, Mapping) or not value
        }
        return packer

    def to_config(
        self,
        packer: Packer,
        *,
        dense_modules: Sequence[str] = (),
        packed_modules: Sequence[str] = (),
        dtype: str = "float32",
    ) -> dict[str, Any]:
        """What mlx-lm writes; which modules are plain, the tensors say."""
        assert isinstance(packer, FolderPacker)
        return {"group_size": packer.group_size, "bits": packer.bits, "mode": packer.mode}

    def to_mixed_config(
        self, packer: Packer, packed: Mapping[str, Packer], *, dense_modules: Sequence[str], dtype: str
    ) -> dict[str, Any]:
        """The same, with an entry for each module that is in another format."""
        usual = self.to_config(packer)
        others = {name: self.to_config(own) for name, own in packed.items()}
        return usual | {name: own for name, own in others.items() if own != usual}

    def suffixes(self, packer: Packer) -> frozenset[str]:
        """Names of all fields."""
        return frozenset(("weight", "scales", "biases"))

    def locate(self, packer: Packer, module: ModuleFields) -> tuple[Packer, tuple[int, int]] | None:
        """Format and shape of the weight of a module: it is quantized if it has scales, as in mlx-lm."""
        stored = module.stored
        if "scales" not in stored and "biases" not in stored:
            if stored.get("weight", ((), ""))[1] == "u32":
                raise ConfigError(
                    f"fields of {module.name}", Described("words only"), "scales and biases as well"
                )
            return None
        assert isinstance(packer, FolderPacker)
        own = packer.declared.get(module.name, packer) or packer
        fields = ("weight", "scales", "biases") if own.mode == "affine" else ("weight", "scales")
        if stored.keys() != set(fields):
            found = Described(
                "only " + ", ".join(sorted(stored)) if len(stored) < len(fields) else sorted(stored)
            )
            raise ConfigError(f"fields of {module.name}", found, _listed(fields))
        (words, kind), (scales, dtype) = stored["weight"], stored["scales"]
        if len(words) == 3:
            found = Described(f"a stack of {words[0]} matrices")
            hint = "export the model before it was converted to MLX, which joins experts"
            raise ConfigError(f"weight of {module.name}", found, "a matrix", hint)
        if kind != "u32" or len(words) != 2 or not all(words):
            raise ConfigError(
                f"weight of {module.name}", Described(f"{kind} of shape {words}"), "u32 (N, words)"
            )
        if own.mode != "affine" and dtype != "u8":
            raise ConfigError(f"scales of {module.name}", dtype, f"u8, as {own.mode} has them")
        if own.mode == "affine" and (dtype not in _SCALES or stored["biases"] != (scales, dtype)):
            found = Described(
                f"scales {dtype} {scales} and biases {stored['biases'][1]} {stored['biases'][0]}"
            )
            raise ConfigError(f"fields of {module.name}", found, f"both alike, in {', '.join(_SCALES)}")
        bits, group = own.bits, own.group_size
        columns = words[1] * 32 // bits
        if words[1] * 32 % bits or columns % group or scales != (words[0], columns // group):
            found = Described(f"{words[1]} words and {scales[-1] if scales else 1} groups per row")
            expected = f"those of {bits} bits in groups of {group}, as config.json has it"
            raise ConfigError(f"weight of {module.name}", found, expected)
        return own if own.mode != "affine" else MLXPacker(bits, group, dtype), (words[0], columns)


def _declared(config: Mapping[str, Any], within: str) -> FolderPacker:
    """Format of these bits, this group size and mode; what is missing is as the program takes it, for modules too."""
    mode = config.get("mode", "affine")
    if mode != "affine":
        if not isinstance(mode, str) or mode not in MODES:
            raise ConfigError(f"{within}mode", mode, "affine, " + ", ".join(MODES))
        packer = MODES[mode]
        for key, own in (("bits", packer.bits), ("group_size", packer.group_size)):
            if config.get(key, own) != own:
                raise ConfigError(f"{within}{key}", config[key], f"{own}, which is all that {mode} has")
        return packer
    bits, group = config.get("bits", _USUAL_BITS), config.get("group_size", _USUAL)
    for key, value, allowed in (("bits", bits, BITS), ("group_size", group, GROUPS)):
        if type(value) is not int or value not in allowed:
            raise ConfigError(f"{within}{key}", value, "one of " + ", ".join(map(str, allowed)))
    return MLXPacker(bits, group)


def _listed(fields: Sequence[str]) -> str:
    return ", ".join(fields[:-1]) + f" and {fields[-1]}"
