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
from qformats_torchao.packers import FAMILY, Int4Packer, Int8Packer
from qformats_torchao.tiles import BOTH, GROUPS, INNER, PADDED, TilePacker, padded

__all__ = ["TorchAO"]

_VARIANT = re.compile(r"int([48])(?:-([1-9]\d{0,8})g)?(?:-(f32|bf16|f16))?")
_TILED = re.compile(r"int4-tiles(?:-(32|64|128|256)g)?(?:-inner([842]))?")
_USUAL = 128
_SCALES = ("f32", "bf16", "f16")
_FIELDS = ("_weight_qdata", "_weight_scale", "_weight_zero_point")
_INSTEAD = "use the model before it was quantized"


class TorchAO(Family):
    """Bytes with a scale per row or group, and codes of 4 bits in groups; read only."""

    name = FAMILY
    packers = (Int8Packer(), Int4Packer(_USUAL), TilePacker(_USUAL))
    other_names = ("ao",)

    def parse(self, variant: str) -> Packer:
        """Packer of a name such as ``int8-32g-bf16``."""
        tiled = _TILED.fullmatch(variant.lower())
        if tiled is not None:
            return TilePacker(int(tiled[1] or _USUAL), int(tiled[2] or INNER[0]))
        found = _VARIANT.fullmatch(variant.lower())
        if found is None:
            tiles = "int4-tiles[-{32,64,128,256}g][-inner{8,4,2}]"
            raise self.unknown(variant, ["int{8,4}[-{columns of a group}g][-bf16|-f16]", tiles])
        group, dtype = int(found[2] or 0), found[3] or "f32"
        return Int8Packer(group, dtype) if found[1] == "8" else Int4Packer(group or _USUAL, dtype)

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
        """The fields of all layouts, and one that is refused."""
        return frozenset((*_FIELDS, BOTH, "_weight_act_pre_scale", "weight"))

    def locate(self, packer: Packer, module: ModuleFields) -> tuple[Packer, tuple[int, int]] | None:
        """Format and shape of the weight of a module, by its tensors."""
        stored = module.stored
        if not {*_FIELDS, BOTH} & stored.keys():
            return None
        needed = (_FIELDS[0], BOTH if BOTH in stored else _FIELDS[1])
        if not {*needed} <= stored.keys():
            raise ConfigError(f"fields of {module.name}", sorted(stored), " and ".join(needed))
        located = None
        if "_weight_act_pre_scale" not in stored:
            located = _tiles(module) if BOTH in stored else _int8(stored) or _int4(stored)
        if located is None:
            told = ", ".join(f"{name} {kind} {shape}" for name, (shape, kind) in sorted(stored.items()))
            expected = "those of Int8Tensor, Int4Tensor or Int4TilePackedTo4dTensor, with inputs as they are"
            raise ConfigError(f"fields of {module.name}", Described(told), expected, _INSTEAD)
        return located


_Stored = Mapping[str, tuple[tuple[int, ...], str]]


def _int8(stored: _Stored) -> tuple[Packer, tuple[int, int]] | None:
    """Format and shape of bytes, with scales and integer zero points in rows like theirs."""
    (shape, kind), (scales, dtype) = stored[_FIELDS[0]], stored[_FIELDS[1]]
    if kind != "i8" or dtype not in _SCALES or stored.get(_FIELDS[2], (scales, "i8")) != (scales, "i8"):
        return None
    if len(shape) != 2 or len(scales) != 2 or scales[0] != shape[0] or not (all(shape) and scales[1]):
        return None
    (rows, columns), groups = shape, scales[1]
    if columns % groups:
        return None
    return Int8Packer(0 if groups == 1 else columns // groups, dtype), (rows, columns)


def _int4(stored: _Stored) -> tuple[Packer, tuple[int, int]] | None:
    """Format and shape of half bytes; scales have a row for each group, and zero points are floats like them."""
    (shape, kind), (scales, dtype) = stored[_FIELDS[0]], stored[_FIELDS[1]]
    if kind != "i8" or dtype not in _SCALES or stored.get(_FIELDS[2]) != (scales, dtype):
        return None
    if len(shape) != 2 or len(scales) != 2 or scales[1] != shape[0] or not (all(shape) and scales[0]):
        return None
    rows, columns, groups = shape[0], 2 * shape[1], scales[0]
    if columns % groups:
        return None
    return Int4Packer(columns // groups, dtype), (rows, columns)


def _tiles(module: ModuleFields) -> tuple[Packer, tuple[int, int]] | None:
    """Format and shape of codes in the order of tensor cores; config.json tells what is weights and what fills up.

    Raises
    ------
    ConfigError
        If config.json does not tell it, or tells another number of rows or columns than these.
    """
    (shape, kind), (scales, dtype) = module.stored[_FIELDS[0]], module.stored[BOTH]
    if (kind, dtype) != ("i32", "bf16") or len(shape) != 4 or len(scales) != 3 or not all((*shape, *scales)):
        return None
    inner, (rows, columns) = 2 * shape[3], (shape[0] * PADDED[0], shape[1] * 32 * shape[3])
    group = columns // scales[0]
    if inner not in INNER or group not in GROUPS or shape[2] != 32:
        return None
    if columns % PADDED[1] or scales != (columns // group, rows, 2):
        return None
    told, whole = Described(f"{rows} x {columns} weights with those that fill them up"), module.expected()
    if whole is None:
        raise ConfigError(
            f"fields of {module.name}", told, "a config.json that describes the model", _INSTEAD
        )
    if padded(whole) != (rows, columns):
        expected = "{} x {}, for {} x {} as config.json has it".format(*padded(whole), *whole)
        raise ConfigError(f"fields of {module.name}", told, expected, _INSTEAD)
    return TilePacker(group, inner), whole
