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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qformats.api import (
        compare,
        contributions,
        dequantize,
        export,
        formats,
        from_pretrained,
        imatrix,
        load_model,
        load_tokenizer,
        merge_adapter,
        open,
        pack,
        packer,
        prepare_for_training,
        publish,
        quantize,
        register_with_transformers,
        unpack,
        verify,
    )
    from qformats.errors import QFormatsError
    from qformats.hookspecs import hookimpl, hookspec
    from qformats.interfaces import (
        Checkpoint,
        DensePacker,
        Family,
        FieldSpec,
        FormatSpec,
        KernelSpec,
        Loader,
        ModelClass,
        PackedTensor,
        Packer,
        Quantizer,
        StoredTensor,
    )
    from qformats.numbers import AffineGrid, Grid, GridParams, QuantizedTensor, TableGrid
    from qformats.version import __version__

__all__ = [
    "AffineGrid",
    "Checkpoint",
    "DensePacker",
    "Family",
    "FieldSpec",
    "FormatSpec",
    "Grid",
    "GridParams",
    "KernelSpec",
    "Loader",
    "ModelClass",
    "PackedTensor",
    "Packer",
    "QFormatsError",
    "QuantizedTensor",
    "Quantizer",
    "StoredTensor",
    "TableGrid",
    "__version__",
    "compare",
    "contributions",
    "dequantize",
    "export",
    "formats",
    "from_pretrained",
    "hookimpl",
    "hookspec",
    "imatrix",
    "load_model",
    "load_tokenizer",
    "merge_adapter",
    "open",
    "pack",
    "packer",
    "prepare_for_training",
    "publish",
    "quantize",
    "register_with_transformers",
    "unpack",
    "verify",
]

_HOMES = {
    "errors": ("QFormatsError",),
    "hookspecs": ("hookimpl", "hookspec"),
    "interfaces": (
        *("Checkpoint", "DensePacker", "Family", "FieldSpec", "FormatSpec", "KernelSpec", "Loader"),
        *("ModelClass", "PackedTensor", "Packer", "Quantizer", "StoredTensor"),
    ),
    "numbers": ("AffineGrid", "Grid", "GridParams", "QuantizedTensor", "TableGrid"),
    "version": ("__version__",),
}
"""Modules of the names that plugins implement and users hold; functions are in ``api``."""


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"qformats.{home}"), name)
    if name in __all__:
        return getattr(import_module("qformats.api"), name)
    message = f"module 'qformats' has no attribute {name!r}"
    raise AttributeError(message)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
