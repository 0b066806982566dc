"""The family ``eetq``: folders that Transformers or EETQ itself have written.

Source: transformers:src/transformers/integrations/eetq.py; EETQ:python/eetq/modules/qlinear.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qformats import Family, Packer
from qformats.errors import ConfigError, Described
from qformats.interfaces import ModuleFields
from qformats_eetq.packers import FAMILY, TILE, EETQPacker

__all__ = ["EETQ"]

_CODES, _SCALES = "weight", "weight_scales"


class EETQ(Family):
    """Bytes with a scale per row; read only."""

    name = FAMILY
    packers = (EETQPacker(),)

    def detect(self, quantization_config: Mapping[str, Any]) -> Packer | None:
        """The packer, for folders that declare ``eetq``."""
        return self.packers[0] if quantization_config.get("quant_method") == FAMILY else None

    def undeclared(self, module: ModuleFields) -> dict[str, Any] | None:
        """What a folder of such modules would declare: no other format calls a row's scales so."""
        (shape, kind), (scales, dtype) = (module.stored.get(name, ((), "")) for name in (_CODES, _SCALES))
        same = kind == "i8" and dtype == "f16" and len(shape) == 2 and scales == shape[1:]
        return {"quant_method": FAMILY, "weights": "int8"} if same else None

    def locate(self, packer: Packer, module: ModuleFields) -> tuple[Packer, tuple[int, int]] | None:
        """Format and shape of the weight of a module, by its tensors."""
        stored = module.stored
        if _SCALES not in stored:
            return None
        (shape, kind), (scales, dtype) = stored.get(_CODES, ((), "nothing")), stored[_SCALES]
        if (kind, dtype) != ("i8", "f16") or len(shape) != 2 or scales != shape[1:]:
            told = ", ".join(f"{name} {of} {size}" for name, (size, of) in sorted(stored.items()))
            expected = f"{_CODES} i8 (in_features, out_features) and {_SCALES} f16 (out_features,)"
            raise ConfigError(f"fields of {module.name}", Described(told), expected)
        found = (shape[1], shape[0])
        if packer.veto(found):
            told = f"{found[0]} x {found[1]} weights"
            raise ConfigError(f"shape of {module.name}", Described(told), f"multiples of {TILE}")
        return packer, found
