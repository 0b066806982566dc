"""Packers of ``fp8``: numbers in E4M3 with scales that multiply, despite the name ``weight_scale_inv``.

Source: deepseek-ai/DeepSeek-V3:README_WEIGHTS.md, inference/kernel.py (``weight_dequant``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from qformats import PackedTensor
from qformats.errors import ConfigError, Described
from qformats.interfaces import Float8Packer

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FAMILY", "BlockPacker", "WholePacker"]

FAMILY = "fp8"
USUAL = (128, 128)
_SCALE = "weight_scale_inv"
_EXPONENTS = 255
"""The byte of an E8M0 scale that stands for NaN."""


class BlockPacker(Float8Packer):
    """A scale for each block of rows and columns; blocks at the edges may be short.

    Parameters
    ----------
    block : tuple of int
        Rows and columns of a block.
    scale_dtype : str
        ``"f32"``, or ``"bf16"`` and ``"f16"`` as some files have it.
    """

    declared_block: tuple[int, int] | None = USUAL
    """What the folder declares that the packer stands for; None for a scale per tensor."""

    def __init__(self, block: tuple[int, int] = USUAL, scale_dtype: str = "f32") -> None:
        sized = "" if block == USUAL else f"-{block[0]}x{block[1]}"
        variant = f"block{sized}" + ("" if scale_dtype == "f32" else f"-{scale_dtype}")
        super().__init__(FAMILY, variant, _SCALE, block, scale_dtype)

    def from_stored(self, fields: Mapping[str, Tensor], shape: tuple[int, int]) -> PackedTensor:
        """Scales that are stored as exponents become float32; see :meth:`qformats.interfaces.Float8Packer`."""
        scale = fields.get(_SCALE)
        if scale is not None and scale.element_size() == 1:
            fields = {**fields, _SCALE: _powers(scale)}
        return super().from_stored(fields, shape)


class WholePacker(Float8Packer):
    """A scale for the whole tensor, or for each row as FBGEMM stores them; read only.

    Parameters
    ----------
    kind : str
        ``"tensor"`` or ``"channel"``.
    scales : str
        Name of the field of scales.
    scale_dtype : str
        ``"f32"``, ``"bf16"`` or ``"f16"``.
    """

    def __init__(self, kind: str, scales: str = "weight_scale", scale_dtype: str = "f32") -> None:
        variant = kind + ("" if scale_dtype == "f32" else f"-{scale_dtype}")
        super().__init__(FAMILY, variant, scales, (0, 0) if kind == "tensor" else (1, 0), scale_dtype)
        # Not written: compressed-tensors:fp8-tensor and fp8-channel hold the same for more programs.
        self.grid = None
        self.spec = replace(self.spec, sqnr_floor_db=None)


def _powers(exponents: Tensor) -> Tensor:
    """Scales of E8M0 bytes, ``2 ** (e - 127)``: float32.

    Raises
    ------
    ConfigError
        If some stand for NaN.
    """
    import torch

    stored = exponents.contiguous().view(torch.uint8)
    if bool((stored == _EXPONENTS).any()):
        raise ConfigError(_SCALE, Described("exponents of 255, which stand for NaN"), "finite scales")
    return torch.exp2(stored.to(torch.float64) - 127).to(torch.float32)
