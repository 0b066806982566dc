"""MLX: quantized folders of mlx-lm, as Apple's machines run them."""

from __future__ import annotations

from qformats import Family, hookimpl
from qformats_mlx.family import MLX

__all__: list[str] = []


@hookimpl
def qformats_register_families() -> list[type[Family]]:
    """The family ``mlx``."""
    return [MLX]
