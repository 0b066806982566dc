"""Packers of ``modelopt``: NVFP4 with a factor per tensor, and FP8 per tensor, row or block.

Source: Model-Optimizer:modelopt/torch/quantization/qtensor/nvfp4_tensor.py, modelopt/torch/export/quant_utils.py.
"""

from __future__ import annotations

from dataclasses import replace

from qformats import FieldSpec
from qformats.interfaces import Float4Packer, Float8Packer

__all__ = ["FAMILY", "STRATEGIES", "FloatPacker", "NvidiaPacker"]

FAMILY = "modelopt"
STRATEGIES = {"tensor": (0, 0), "channel": (1, 0), "block": (128, 128)}
"""Rows and columns that share a scale in FP8; 0 stands for all of them."""


class NvidiaPacker(Float4Packer):
    """NVFP4.

    Examples
    --------
    >>> import torch
    >>> from qformats_modelopt.packers import NvidiaPacker
    >>> packed = NvidiaPacker().encode_reference(torch.linspace(-6, 6, 32).view(1, 32))
    >>> packed.fields["weight_scale"].tolist(), packed.fields["weight_scale_2"].shape
    ([[448.0, 448.0]], torch.Size([]))
    """

    def __init__(self) -> None:
        super().__init__(
            FAMILY,
            "nvfp4",
            ("weight", "weight_scale", "weight_scale_2"),
            scalar=True,
            source="Model-Optimizer:modelopt/torch/quantization/qtensor/nvfp4_tensor.py",
        )


class FloatPacker(Float8Packer):
    """FP8; a scale of the whole tensor is stored without dimensions, those of rows in one.

    Parameters
    ----------
    strategy : str
        ``"tensor"``, which is written, ``"channel"`` or ``"block"`` (of 128 x 128).
    """

    def __init__(self, strategy: str = "tensor") -> None:
        self.strategy = strategy
        variant = "fp8" if strategy == "tensor" else f"fp8-{strategy}"
        super().__init__(FAMILY, variant, "weight_scale", STRATEGIES[strategy])
        weight, scale = self.spec.fields
        if strategy == "tensor":
            scale = FieldSpec(scale.name, (), scale.dtype, scale.unit)
        self.spec = replace(
            self.spec,
            fields=(weight, scale),
            source="Model-Optimizer:modelopt/torch/export/quant_utils.py",
        )
        if strategy != "tensor":
            # Not written: compressed-tensors:fp8-channel and fp8-block hold the same for more programs.
            self.grid = None
            self.spec = replace(self.spec, sqnr_floor_db=None)
