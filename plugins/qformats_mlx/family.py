"""The family ``mlx``: names of its variants, and what folders of mlx-lm declare.

Source: mlx-lm:mlx_lm/utils.py (``load_model``, ``quantize_model``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from qformats import Family, Packer
from qformats.errors import ConfigError, Described
from qformats.interfaces import ModuleFields
from qformats_mlx.packers import BITS, FAMILY, GROUPS, MLXPacker

__all__ = ["MLX"]

_VARIANT = re.compile(r"([234568])bit-(32|64|128)g(?:-(f16|bf16|f32))?")
_USUAL = 64
_KEYS = ("group_size", "bits", "mode")
_SCALES = ("f16", "bf16", "f32")
_INSTEAD = "use the model before it was quantized"
_MODES = {
    "mxfp4": "floats of 4 bits with a power of two for 32 of them",
    "nvfp4": "floats of 4 bits with a float of 8 bits for 16 of them",
    "mxfp8": "floats of 8 bits with a power of two for 32 of them",
}


class MLX(Family):
    """Affine groups of every width and size that the program has."""

    name = FAMILY
    packers = tuple(MLXPacker(bits, group) for bits in (4, 8, 2, 3, 6) for group in (64, 32, 128))
    other_names = ("mlx-lm", "mlx_lm")
    programs = ("mlx",)
    aliases = MappingProxyType({f"{bits}bit": f"{bits}bit-{_USUAL}g" for bits in BITS})
    config_keys = ("quantization",)

    def hub_name(self, packer: Packer) -> str:
        """``4bit``, as mlx-community publishes them."""
        return packer.spec.variant.removesuffix(f"-{_USUAL}g")

    def parse(self, variant: str) -> Packer:
        """Packer of a name such as ``4bit-64g-bf16``."""
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
        bits, group = _numbers(config, "")
        packer = MLXPacker(bits, group)
        packer.declared = {
            name: (_numbers({"bits": bits, "group_size": group} | dict(value), f"{name}.") if value else None)
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
        assert isinstance(packer, MLXPacker)
        return {"group_size": packer.group_size, "bits": packer.bits, "mode": "affine"}

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
        if not {"weight", "scales", "biases"} <= stored.keys():
            found = Described("only " + ", ".join(sorted(stored)))
            raise ConfigError(f"fields of {module.name}", found, "weight, scales and biases")
        (words, kind), (scales, dtype) = stored["weight"], stored["scales"]
        if len(words) == 3:
            found = Described(f"a stack of {words[0]} matrices")
            hint = "export the model before it was converted to MLX, which joins experts"
            raise ConfigError(f"weight of {module.name}", found, "a matrix", hint)
        if kind != "u32" or len(words) != 2 or not all(words):
            raise ConfigError(
                f"weight of {module.name}", Described(f"{kind} of shape {words}"), "u32 (N, words)"
            )
        if dtype not in _SCALES or stored["biases"] != (scales, dtype):
            found = Described(
                f"scales {dtype} {scales} and biases {stored['biases'][1]} {stored['biases'][0]}"
            )
            raise ConfigError(f"fields of {module.name}", found, f"both alike, in {', '.join(_SCALES)}")
        assert isinstance(packer, MLXPacker)
        told = packer.declared.get(module.name, (packer.bits, packer.group_size))
        bits, group = told or (packer.bits, packer.group_size)
        columns = words[1] * 32 // bits
        if words[1] * 32 % bits or columns % group or scales != (words[0], columns // group):
            found = Described(f"{words[1]} words and {scales[-1] if scales else 1} groups per row")
            expected = f"those of {bits} bits in groups of {group}, as config.json has it"
            raise ConfigError(f"weight of {module.name}", found, expected)
        return MLXPacker(bits, group, dtype), (words[0], columns)


def _numbers(config: Mapping[str, Any], within: str) -> tuple[int, int]:
    """Bits and columns of a group."""
    mode = config.get("mode", "affine")
    if mode != "affine":
        about = _MODES.get(str(mode), "")
        found = Described(f"{mode}, {about}") if about else mode
        raise ConfigError(f"{within}mode", found, "affine", _INSTEAD)
    for key, allowed in (("bits", BITS), ("group_size", GROUPS)):
        if type(config[key]) is not int or config[key] not in allowed:
            raise ConfigError(f"{within}{key}", config[key], "one of " + ", ".join(map(str, allowed)))
    return config["bits"], config["group_size"]
