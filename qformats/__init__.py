"""qformats: any quantized LLM format into any other.

>>> import torch, qformats
>>> weight = torch.randn(64, 256)
>>> quantized = qformats.quantize(weight, "gguf:q4_0")
>>> packed = qformats.pack(quantized, "gguf:q4_0")
>>> packed.nbytes * 8 / weight.numel()
4.5
>>> bool((packed.unpack().dequantize() == packed.dequantize()).all())
True

Importing the package imports neither torch nor any plugin; each name is loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qformats.api import (
        compare,
        dequantize,
        export,
        formats,
        from_pretrained,
        load_model,
        merge_adapter,
        open,
        pack,
        packer,
        prepare_for_training,
        quantize,
        register_with_transformers,
        unpack,
    )
    from qformats.checkpoint import Checkpoint, StoredTensor
    from qformats.errors import QFormatsError
    from qformats.grids import AffineGrid, Grid, GridParams, TableGrid
    from qformats.hookspecs import hookimpl
    from qformats.interfaces import DensePacker, Loader, Packer, Quantizer
    from qformats.spec import FieldSpec, FormatSpec, KernelSpec
    from qformats.tensors import PackedTensor, QuantizedTensor

__all__ = [
    "AffineGrid",
    "Checkpoint",
    "DensePacker",
    "FieldSpec",
    "FormatSpec",
    "Grid",
    "GridParams",
    "KernelSpec",
    "Loader",
    "PackedTensor",
    "Packer",
    "QFormatsError",
    "QuantizedTensor",
    "Quantizer",
    "StoredTensor",
    "TableGrid",
    "compare",
    "dequantize",
    "export",
    "formats",
    "from_pretrained",
    "hookimpl",
    "load_model",
    "merge_adapter",
    "open",
    "pack",
    "packer",
    "prepare_for_training",
    "quantize",
    "register_with_transformers",
    "unpack",
]

_HOMES = {
    "api": (
        "compare",
        "dequantize",
        "export",
        "formats",
        "from_pretrained",
        "load_model",
        "merge_adapter",
        "open",
        "pack",
        "packer",
        "prepare_for_training",
        "quantize",
        "register_with_transformers",
        "unpack",
    ),
    "checkpoint": ("Checkpoint", "StoredTensor"),
    "errors": ("QFormatsError",),
    "grids": ("AffineGrid", "Grid", "GridParams", "TableGrid"),
    "hookspecs": ("hookimpl",),
    "interfaces": ("DensePacker", "Loader", "Packer", "Quantizer"),
    "spec": ("FieldSpec", "FormatSpec", "KernelSpec"),
    "tensors": ("PackedTensor", "QuantizedTensor"),
}

try:
    __version__ = version("qformats")
except PackageNotFoundError:
    __version__ = "0+uninstalled"


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"qformats.{home}"), name)
    message = f"module 'qformats' has no attribute {name!r}"
    raise AttributeError(message)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
