"""The family ``hqq``: what folders of HQQ declare, and the descriptions that each of its modules stores.

Source: hqq:hqq/core/quantize.py (``HQQLinear.state_dict``); transformers:src/transformers/quantizers/quantizer_hqq.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qformats import Family, Packer
from qformats.errors import ConfigError, Described
from qformats.interfaces import ModuleFields
from qformats_hqq.packers import FAMILY, PARTS, HQQPacker

__all__ = ["HQQ"]

_VARIANT = re.compile(r"([84321])bit-([1-9]\d{0,8})g(-axis0)?(?:-(f16|bf16|f32))?")
_NUMBERS = ("nbits", "group_size", "axis")
_ABOUT = (
    *("shape", "packing", "unpack_view_dtype", "view_as_float", "quant_scale", "quant_zero", "compute_dtype"),
    *("offload_meta", "encoded_state_dict", "stores_quant_config", "channel_wise", "optimize", "round_zero"),
)
_NESTED = ("zero_q", "scale_q", "meta_zero", "meta_scale", "zero_scale", "scale_scale")
_SCALES = ("f16", "bf16", "f32")
_INSTEAD = "use the model before it was quantized"


class HQQ(Family):
    """Groups along rows, and across them; read only."""

    name = FAMILY
    packers = (HQQPacker(4, 64), HQQPacker(8, 64), HQQPacker(3, 64), HQQPacker(2, 64), HQQPacker(1, 64))

    def parse(self, variant: str) -> Packer:
        """Packer of a name such as ``4bit-64g-axis0-bf16``."""
        found = _VARIANT.fullmatch(variant.lower())
        if found is None:
            raise self.unknown(variant, ["{8,4,3,2,1}bit-{weights of a group}g[-axis0][-bf16|-f32]"])
        return HQQPacker(int(found[1]), int(found[2]), 0 if found[3] else 1, found[4] or "f16")

    def detect(self, quantization_config: Mapping[str, Any]) -> Packer | None:
        """A packer of such folders; :meth:`locate` decides for each module, which describes itself."""
        return self.packers[0] if quantization_config.get("quant_method") == FAMILY else None

    def suffixes(self, packer: Packer) -> frozenset[str]:
        """The fields, and what describes them."""
        return frozenset(("W_q", "scale", "zero", *_NUMBERS, *_ABOUT, *_NESTED))

    def locate(self, packer: Packer, module: ModuleFields) -> tuple[Packer, tuple[int, int]] | None:
        """Format and shape of the weight of a module, by its own description."""
        stored = module.stored
        if "W_q" not in stored:
            return None
        nested = [name for name in _NESTED if name in stored] + [
            name for name in ("quant_scale", "quant_zero") if name in stored and any(module.read(name))
        ]
        if nested:
            found = Described(f"{nested[0]}: scales or zero points that are quantized themselves")
            raise ConfigError(f"fields of {module.name}", found, "plain ones", _INSTEAD)
        if "view_as_float" in stored and any(module.read("view_as_float")):
            found = Described("codes under the name of a dtype of floats")
            raise ConfigError(f"view_as_float of {module.name}", found, "bytes", _INSTEAD)
        missing = [name for name in ("scale", "zero", "shape", *_NUMBERS) if name not in stored]
        if missing:
            raise ConfigError(f"fields of {module.name}", sorted(stored), "also " + ", ".join(missing))
        bits, group, axis = (self._number(module, name)[0] for name in _NUMBERS)
        shape = self._number(module, "shape")
        if bits not in PARTS or group < 1 or axis not in (0, 1) or len(shape) != 2:
            found = Described(f"{bits} bits, groups of {group}, axis {axis}, shape {shape}")
            raise ConfigError(f"description of {module.name}", found, "8, 4, 3, 2 or 1 bits of a matrix")
        dtype = stored["scale"][1]
        if dtype not in _SCALES or stored["zero"][1] != dtype:
            found = Described(f"scale in {dtype}, zero in {stored['zero'][1]}")
            raise ConfigError(
                f"fields of {module.name}", found, f"both in one of {', '.join(_SCALES)}", _INSTEAD
            )
        own, size = HQQPacker(bits, group, axis, dtype), (shape[0], shape[1])
        problem = own.veto(size)
        wanted = None if problem else own.stored(size)
        if wanted is None or any(stored[name] != wanted[name] for name in wanted):
            told = ", ".join(
                f"{name} {stored[name][1]} {stored[name][0]}" for name in ("W_q", "scale", "zero")
            )
            expected = problem or ", ".join(
                f"{name} {kind} {dims}" for name, (dims, kind) in (wanted or {}).items()
            )
            raise ConfigError(f"fields of {module.name}", Described(told), expected)
        return own, size

    @staticmethod
    def _number(module: ModuleFields, field: str) -> tuple[int, ...]:
        """Whole numbers of a small tensor."""
        import numpy as np

        kinds = {"i32": "<i4", "i64": "<i8", "u8": "u1"}
        _, kind = module.stored[field]
        if kind not in kinds:
            raise ConfigError(f"{field} of {module.name}", Described(f"a tensor of {kind}"), "whole numbers")
        return tuple(int(value) for value in np.frombuffer(module.read(field), kinds[kind]))
