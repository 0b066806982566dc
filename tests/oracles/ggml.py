"""Block bytes as ggml's C code writes and reads them."""

from __future__ import annotations

import ctypes as c
import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oracles import package_folder

__all__ = ["dequantize", "quantize", "row_bytes", "type_id", "validate"]

LIBGGML = "0.20.2.post1"
# gguf 0.19 does not list it yet.
_NEWER_TYPES = {"Q2_0": 42}


class _TypeTraits(c.Structure):
    """``struct ggml_type_traits`` (libggml:include/ggml.h)."""

    _fields_ = (
        ("type_name", c.c_char_p),
        ("block_size", c.c_int64),
        ("block_size_interleave", c.c_int64),
        ("type_size", c.c_size_t),
        ("is_quantized", c.c_bool),
        ("to_float", c.CFUNCTYPE(None, c.c_void_p, c.c_void_p, c.c_int64)),
        ("from_float_ref", c.c_void_p),
    )


@functools.cache
def _library() -> Any:
    folder = package_folder("libggml-python", "libggml", LIBGGML)
    library = c.CDLL(str(folder / "lib64" / "libggml-base.so"))
    for name, result, arguments in (
        ("ggml_quantize_chunk", c.c_size_t, (c.c_int, *[c.c_void_p] * 2, *[c.c_int64] * 3, c.c_void_p)),
        ("ggml_quantize_requires_imatrix", c.c_bool, (c.c_int,)),
        ("ggml_validate_row_data", c.c_bool, (c.c_int, c.c_void_p, c.c_size_t)),
        ("ggml_get_type_traits", c.POINTER(_TypeTraits), (c.c_int,)),
        # Tables of the IQ types are built by the quantizer; their decoders need them too.
        ("ggml_quantize_init", None, (c.c_int,)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    q4_k = library.ggml_get_type_traits(type_id("q4_K")).contents
    if (q4_k.type_name, q4_k.block_size, q4_k.type_size) != (b"q4_K", 256, 144):
        raise RuntimeError(f"libggml-python {LIBGGML}: ggml_type_traits does not have the layout of ggml.h")
    return library


def type_id(name: str) -> int:
    """``enum ggml_type`` of a name such as ``q4_0``, in any case."""
    from gguf import GGMLQuantizationType

    if name.upper() in _NEWER_TYPES:
        return _NEWER_TYPES[name.upper()]
    return int(GGMLQuantizationType[name.upper()])


def _traits(name: str) -> Any:
    traits = _library().ggml_get_type_traits(type_id(name)).contents
    if not traits.block_size:
        raise ValueError(f"ggml has no type {name}")
    return traits


def row_bytes(name: str, columns: int) -> int:
    """Bytes of one row of `columns` elements."""
    traits = _traits(name)
    if columns % traits.block_size:
        raise ValueError(f"{name}: {columns} columns are no multiple of the block of {traits.block_size}")
    return int(columns // traits.block_size * traits.type_size)


def quantize(
    name: str, weights: NDArray[np.float32], imatrix: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Quantize as llama-quantize does.

    Parameters
    ----------
    name : str
        A ggml type.
    weights : ndarray
        float32 ``[..., columns]``, finite.
    imatrix : ndarray, optional
        float32 ``[columns]``, importance of each column.

    Returns
    -------
    ndarray
        uint8 ``[..., row_bytes]``.

    Raises
    ------
    ValueError
        For columns that are no multiple of the block, or a type that aborts the process without an imatrix.
    """
    library, kind = _library(), type_id(name)
    source = np.ascontiguousarray(weights, np.float32)
    columns = source.shape[-1]
    if imatrix is None and library.ggml_quantize_requires_imatrix(kind):
        raise ValueError(f"{name} needs an imatrix")
    if imatrix is not None:
        imatrix = np.ascontiguousarray(imatrix, np.float32)
        if imatrix.shape != (columns,):
            raise ValueError(f"the imatrix has shape {imatrix.shape}, the rows have {columns} columns")
    packed = np.zeros((*source.shape[:-1], row_bytes(name, columns)), np.uint8)
    rows = source.size // columns
    importance = None if imatrix is None else imatrix.ctypes.data
    written = library.ggml_quantize_chunk(
        kind, source.ctypes.data, packed.ctypes.data, 0, rows, columns, importance
    )
    if written != packed.nbytes:
        raise RuntimeError(f"ggml wrote {written} bytes of {name}, expected {packed.nbytes}")
    return packed


def dequantize(name: str, packed: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Decode uint8 ``[..., row_bytes]`` to float32 ``[..., columns]``."""
    library, traits = _library(), _traits(name)
    source = np.ascontiguousarray(packed, np.uint8)
    if source.shape[-1] % traits.type_size:
        raise ValueError(f"{name}: {source.shape[-1]} bytes are no multiple of {traits.type_size}")
    columns = source.shape[-1] // traits.type_size * traits.block_size
    if name.upper() == "F32":
        return source.view(np.float32).copy()
    library.ggml_quantize_init(type_id(name))
    values = np.empty((*source.shape[:-1], columns), np.float32)
    traits.to_float(source.ctypes.data, values.ctypes.data, values.size)
    return values


def validate(name: str, packed: NDArray[np.uint8]) -> bool:
    """Whether ggml accepts the bytes: every scale (or float) is finite."""
    source = np.ascontiguousarray(packed, np.uint8)
    return bool(_library().ggml_validate_row_data(type_id(name), source.ctypes.data, source.nbytes))
