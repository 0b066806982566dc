"""The family ``glm``: names of its variants, and how its weights lie in folders."""

from __future__ import annotations

import re
from functools import lru_cache

from qformats import Family, Packer
from qformats.errors import ConfigError
from qformats.interfaces import ModuleFields
from qformats_glm.packers import FAMILY, SCALES, GLMPacker

__all__ = ["GLM"]

_VARIANT = re.compile(r"int([48])(?:-(bf16|f32))?(?:-tp([1-9]\d{0,4}))?")


class GLM(Family):
    """One scale per row; :meth:`parse` also takes ``-tp{p}``, several scales per row, which can only be read."""

    name = FAMILY
    packers = tuple(GLMPacker(bits, scale) for bits in (8, 4) for scale in SCALES)
    default_variant = "int4"

    def parse(self, variant: str) -> GLMPacker:
        """Packer of one variant."""
        found = _VARIANT.fullmatch(variant)
        if found is None or found[3] == "1":
            raise self.unknown(variant, ["int{4,8}-tp{scales per row}"])
        return _packer(int(found[1]), found[2] or "f16", int(found[3] or 1))

    def locate(self, packer: Packer, module: ModuleFields) -> tuple[Packer, tuple[int, int]] | None:
        """Format and shape of a module's weight: its scales may be of any float dtype, and several per row."""
        dtype, scale = (module.stored.get(name) for name in ("weight", "weight_scale"))
        if dtype is None or scale is None or dtype[1] != "i8" or not isinstance(packer, GLMPacker):
            return super().locate(packer, module)
        if scale[1] not in SCALES:
            raise ConfigError("weight_scale", scale[1], "scales in f16, bf16 or f32")
        parts = scale[0][1] if len(scale[0]) == 2 else 1
        own = GLMPacker(packer.bits, scale[1], max(1, parts))
        fields = {field.name: module.stored[field.name] for field in own.spec.fields}
        return own, own.weight_shape(fields)


@lru_cache(maxsize=64)
def _packer(bits: int, scale_dtype: str, parts: int) -> GLMPacker:
    return GLMPacker(bits, scale_dtype, parts)
