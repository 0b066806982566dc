"""What ``quantization_config`` says: groups of modules, and how the weights of each are stored.

Source: compressed-tensors:src/compressed_tensors/quantization/quant_config.py, quant_scheme.py, quant_args.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qformats.errors import ConfigError, Described
from qformats.interfaces import Values

__all__ = ["Declared", "Scheme", "declared"]

_METHODS = ("compressed-tensors", "compressed_tensors", "sparseml")
_SPARSE = ("sparse-bitmask", "sparse-24-bitmask", "marlin-24")
_ONLINE = ("input", "output", "k_cache", "q_attn")
"""Where a transform changes activations, so that weights as they are stored belong to another space."""
_INTEGERS = re.compile(r"w([2-8])a(?:4|8|16)(_asym)?")
_INSTEAD = "use the model before it was quantized"


@dataclass(frozen=True)
class Scheme:
    """How the weights of a group of modules are stored; None for what is not said.

    Attributes
    ----------
    targets : tuple of str
        Names of modules, patterns that begin with ``re:``, or names of classes.
    bits : int or None
        Width of a code.
    kind : str
        ``"int"`` or ``"float"``.
    group_size : int or None
        Columns of a group; 0 for the whole row.
    block : tuple of int or None
        Rows and columns of a block.
    """

    targets: tuple[str, ...]
    bits: int | None = None
    kind: str = "int"
    group_size: int | None = None
    block: tuple[int, int] | None = None


@dataclass(frozen=True)
class Declared:
    """All groups of a folder, and the version of the library that wrote it."""

    schemes: tuple[Scheme, ...] = ()
    version: str = ""

    def scheme(self, module: str) -> Scheme | None:
        """Group of a module: by its name, a pattern from its beginning, or the name of a class, in this order."""
        patterns = [
            (scheme, target) for scheme in self.schemes for target in scheme.targets if target[:3] == "re:"
        ]
        found = [scheme for scheme in self.schemes if module in scheme.targets]
        found += [scheme for scheme, target in patterns if re.match(target[3:], module)]
        found += [s for s in self.schemes if any(t[:3] != "re:" and "." not in t for t in s.targets)]
        return found[0] if found else None


def declared(config: Mapping[str, Any]) -> Declared | None:
    """Read a configuration; ``None`` if it is of another method.

    Raises
    ------
    ConfigError
        If it stands for something that cannot be read, or whose weights mean nothing by themselves.
    """
    method = config.get("quant_method")
    if method is not None and str(method).lower() not in _METHODS:
        return None
    if method is None and not (isinstance(config.get("config_groups"), Mapping) and "format" in config):
        return None
    sparsity = config.get("sparsity_config") or {}
    stored = sparsity.get("format") if isinstance(sparsity, Mapping) else sparsity
    for key, name in (("sparsity_config", stored), ("format", config.get("format"))):
        if name in _SPARSE:
            raise ConfigError(key, name, "weights without sparsity", _INSTEAD)
    _refuse_rotations(config.get("transform_config"))
    groups = config.get("config_groups", {})
    if not isinstance(groups, Mapping):
        raise ConfigError("config_groups", groups, "an object, with a name for each group")
    schemes = tuple(_scheme(str(name), content) for name, content in groups.items())
    return Declared(schemes, str(config.get("version") or ""))


def _refuse_rotations(transforms: Any) -> None:
    groups = transforms.get("config_groups") if isinstance(transforms, Mapping) else None
    for name, group in groups.items() if isinstance(groups, Mapping) else ():
        applied = group.get("apply", ()) if isinstance(group, Mapping) else ()
        for each in applied if isinstance(applied, list) else ():
            place = each.get("location") if isinstance(each, Mapping) else None
            if place in _ONLINE:
                found = Described(f"{name}, which is applied to activations ({place}) as the model runs")
                raise ConfigError("transform_config", found, "only transforms of weights", _INSTEAD)


def _scheme(name: str, content: Any) -> Scheme:
    if isinstance(content, list):
        # A preset, by its name, with the modules that it is for.
        return _preset(name, tuple(map(str, content)))
    if not isinstance(content, Mapping):
        raise ConfigError(f"config_groups.{name}", content, "an object with targets and weights")
    targets = tuple(Values(content, within=f"config_groups.{name}").strings("targets", ["Linear"]))
    weights = content.get("weights")
    if weights is None:
        return Scheme(targets)
    if not isinstance(weights, Mapping):
        raise ConfigError(f"config_groups.{name}.weights", weights, "an object")
    args = Values(weights, within=f"config_groups.{name}.weights")
    kind = args.text("type", "int", among=("int", "float"))
    bits = args.integer("num_bits", 8)
    group = args.integer("group_size", None) if weights.get("group_size") is not None else None
    strategy = weights.get("strategy")
    if strategy in ("channel", "tensor") or (group is not None and group < 1):
        group = 0
    return Scheme(targets, bits, kind, group, _block(name, weights.get("block_structure")))


def _preset(name: str, targets: tuple[str, ...]) -> Scheme:
    lowered = name.lower()
    integers = _INTEGERS.fullmatch({"int8": "w8a8"}.get(lowered, lowered))
    if integers:
        group = 0 if lowered in ("w8a8", "int8") else 128
        return Scheme(targets, int(integers[1]), "int", group)
    if lowered in ("fp8", "fp8_dynamic"):
        return Scheme(targets, 8, "float", 0)
    if lowered == "fp8_block":
        return Scheme(targets, 8, "float", None, (128, 128))
    if lowered in ("mxfp4", "mxfp4a16", "mxfp4xfp8"):
        return Scheme(targets, 4, "float", 32)
    if lowered in ("nvfp4", "nvfp4a16"):
        return Scheme(targets, 4, "float", 16)
    if lowered == "unquantized":
        return Scheme(targets)
    expected = "a preset whose weights are integers of 2 to 8 bits, FP8, MXFP4 or NVFP4"
    raise ConfigError("config_groups", name, expected, _INSTEAD)


def _block(name: str, found: Any) -> tuple[int, int] | None:
    if isinstance(found, str) and re.fullmatch(r"\d{1,9}x\d{1,9}", found):
        found = [int(part) for part in found.split("x")]
    if found is None:
        return None
    sizes = found if isinstance(found, list) else []
    if len(sizes) != 2 or not all(type(each) is int and 0 < each < 1 << 31 for each in sizes):
        expected = "two whole numbers, such as [128, 128]"
        raise ConfigError(f"config_groups.{name}.weights.block_structure", found, expected)
    return sizes[0], sizes[1]
