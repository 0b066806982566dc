"""Names of element types, and their sizes, without importing torch.

One short name serves in descriptors, format names and reports; safetensors and torch spell them differently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qformats.errors import ConfigError

if TYPE_CHECKING:
    import torch

__all__ = ["COMPUTED", "FLOATS", "FLOATS8", "SAFETENSORS", "SIZES", "dtype_name", "torch_dtype"]

SIZES = {
    "f64": 8,
    "f32": 4,
    "f16": 2,
    "bf16": 2,
    "f8_e4m3": 1,
    "f8_e5m2": 1,
    "f8_e8m0": 1,
    "i64": 8,
    "i32": 4,
    "u32": 4,
    "i16": 2,
    "i8": 1,
    "u8": 1,
    "bool": 1,
}
"""Bytes per element."""

FLOATS8 = ("f8_e4m3", "f8_e5m2")
"""Types that weights are read from and never written in; bfloat16 holds all their numbers."""
FLOATS = ("f64", "f32", "f16", "bf16", *FLOATS8)
"""Types that hold weights; the others hold indices and masks and are never cast."""
COMPUTED = ("f32", "f16", "bf16")
"""Dtypes that models and kernels compute in."""

SAFETENSORS = {name: {"bool": "BOOL"}.get(name, name.upper()) for name in SIZES}
"""Spelling in a safetensors header."""

_TORCH = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "f8_e4m3": "float8_e4m3fn",
    "f8_e5m2": "float8_e5m2",
    "f8_e8m0": "float8_e8m0fnu",
    "i64": "int64",
    "i32": "int32",
    "u32": "uint32",
    "i16": "int16",
    "i8": "int8",
    "u8": "uint8",
    "bool": "bool",
}


def torch_dtype(name: str) -> torch.dtype:
    """Torch's dtype for a short name.

    Raises
    ------
    ConfigError
        If the name is not in :data:`SIZES`.

    Examples
    --------
    >>> from qformats.numbers import torch_dtype
    >>> torch_dtype("bf16")
    torch.bfloat16
    """
    import torch

    if name not in _TORCH:
        raise ConfigError("dtype", name, "one of " + ", ".join(SIZES))
    dtype: torch.dtype = getattr(torch, _TORCH[name])
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """Short name of a torch dtype.

    Raises
    ------
    ConfigError
        If qformats has no name for it (complex types, and other 8-bit floats).

    Examples
    --------
    >>> import torch
    >>> from qformats.numbers import dtype_name
    >>> dtype_name(torch.float16)
    'f16'
    """
    spelled = str(dtype).removeprefix("torch.")
    for name, torch_name in _TORCH.items():
        if torch_name == spelled:
            return name
    raise ConfigError("dtype", spelled, "one of " + ", ".join(_TORCH.values()))
