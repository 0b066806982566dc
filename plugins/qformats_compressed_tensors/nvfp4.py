"""The packer of ``nvfp4-pack-quantized``: the global scale is a divisor, the reciprocal of ModelOpt's.

Source: compressed-tensors:src/compressed_tensors/compressors/nvfp4/base.py.
"""

from __future__ import annotations

from qformats.interfaces import Float4Packer
from qformats_compressed_tensors.integers import FAMILY

__all__ = ["NvidiaPacker"]


class NvidiaPacker(Float4Packer):
    """``nvfp4-pack-quantized``.

    Examples
    --------
    >>> import torch
    >>> from qformats_compressed_tensors.nvfp4 import NvidiaPacker
    >>> packed = NvidiaPacker().encode_reference(torch.linspace(-6, 6, 32).view(1, 32))
    >>> packed.fields["weight_scale"].tolist(), packed.fields["weight_global_scale"].tolist()
    ([[448.0, 448.0]], [448.0])
    """

    layout = "nvfp4-pack-quantized"

    def __init__(self) -> None:
        super().__init__(
            FAMILY,
            "nvfp4",
            ("weight_packed", "weight_scale", "weight_global_scale"),
            divides=True,
            source="compressed-tensors:src/compressed_tensors/compressors/nvfp4/base.py",
        )
