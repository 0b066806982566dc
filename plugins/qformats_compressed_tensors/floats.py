"""The packer of ``float-quantized``: E4M3 numbers with a scale per tensor, row or block."""

from __future__ import annotations

from qformats.interfaces import Float8Packer
from qformats_compressed_tensors.integers import FAMILY

__all__ = ["STRATEGIES", "FloatPacker"]

STRATEGIES = {"channel": (1, 0), "block": (128, 128), "tensor": (0, 0)}
"""Rows and columns of a block, by the library's word for it; 0 stands for all of them."""


class FloatPacker(Float8Packer):
    """``float-quantized``.

    Parameters
    ----------
    strategy : str
        ``"channel"``, ``"block"`` (of 128 x 128) or ``"tensor"``.
    scale_dtype : str
        ``"f32"``, ``"bf16"`` or ``"f16"``.
    """

    layout = "float-quantized"

    def __init__(self, strategy: str, scale_dtype: str = "f32") -> None:
        self.strategy = strategy
        variant = f"fp8-{strategy}" + ("" if scale_dtype == "f32" else f"-{scale_dtype}")
        super().__init__(FAMILY, variant, "weight_scale", STRATEGIES[strategy], scale_dtype)
