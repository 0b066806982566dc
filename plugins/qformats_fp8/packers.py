"""Packers of ``fp8``: numbers in E4M3 with scales that multiply, despite the name ``weight_scale_inv``.

Source: deepseek-ai/DeepSeek-V3:README_WEIGHTS.md, inference/kernel.py (``weight_dequant``).
"""

from __future__ import annotations

from dataclasses import replace

from qformats.interfaces import Float8Packer

__all__ = ["FAMILY", "NAMES", "POWERS", "USUAL", "BlockPacker", "WholePacker"]

FAMILY = "fp8"
USUAL = (128, 128)
_SCALE = "weight_scale_inv"
POWERS = "f8_e8m0"
NAMES = {POWERS: "ue8m0"}
"""What dtypes of scales are called in names of formats, and in ``scale_fmt``."""


class BlockPacker(Float8Packer):
    """A scale for each block of rows and columns; blocks at the edges may be short.

    Parameters
    ----------
    block : tuple of int
        Rows and columns of a block.
    scale_dtype : str
        ``"f32"``, or ``"bf16"`` and ``"f16"`` as some files have it; ``"f8_e8m0"`` for powers of two, of which
        exponents are stored.

    Examples
    --------
    >>> import torch
    >>> from qformats_fp8.packers import BlockPacker
    >>> packed = BlockPacker(scale_dtype="f8_e8m0").encode_reference(torch.linspace(-1, 1, 256).view(2, 128))
    >>> packed.format, packed.fields["weight_scale_inv"].float().tolist(), packed.dequantize()[0, 0].item()
    ('fp8:block-ue8m0', [[0.00390625]], -1.0)
    """

    declared_block: tuple[int, int] | None = USUAL
    """What the folder declares that the packer stands for; None for a scale per tensor."""

    def __init__(self, block: tuple[int, int] = USUAL, scale_dtype: str = "f32") -> None:
        sized = "" if block == USUAL else f"-{block[0]}x{block[1]}"
        variant = f"block{sized}" + (
            "" if scale_dtype == "f32" else f"-{NAMES.get(scale_dtype, scale_dtype)}"
        )
        super().__init__(FAMILY, variant, _SCALE, block, scale_dtype)


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
