"""Formats of folders that no plugin here reads: what they are, and the program that reads them."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["KNOWN", "SIMILAR", "recognized"]

_BITNET = "BitNet's ternary weights, which Transformers reads, and bitnet.cpp as GGUF files"

KNOWN = {
    "exl2": "ExLlamaV2's format, which exllamav2 and TabbyAPI read",
    "exl3": "ExLlamaV3's format, which exllamav3 and TabbyAPI read",
    "aqlm": "additive codebooks of vectors, which Transformers reads with the package aqlm",
    "vptq": "codebooks of vectors, which Transformers reads with the package vptq",
    "spqr": "few bits and sparse outliers, which Transformers reads with the package spqr_quant",
    "higgs": "codebooks of rotated vectors, which Transformers reads with the package flute-kernel",
    "fp_quant": "rotated floats of 4 bits, which Transformers reads with the package fp-quant",
    "quark": "AMD's container, which Transformers reads with the package amd-quark",
    "sinq": "scales along both dimensions, which Transformers reads with the package sinq",
    "bitnet": _BITNET,
    "bitlinear": _BITNET,
}
"""By ``quant_method``, which is also what users call them."""

SIMILAR = {**dict.fromkeys(KNOWN, ("4bit-128g",)), "bitnet": ("2bit-128g",)}
"""Variants of this family that come nearest."""

_FIELDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "exl2": {"q_weight": ("i32",), "q_scale": ("i32",), "q_groups": ("i16",)},
    "exl3": {"trellis": ("i16", "u16")},
    "aqlm": {"codes": ("i8", "i16", "i32", "u8"), "codebooks": ("f16", "bf16", "f32")},
    # Its indices may be called floats, for programs that know no others.
    "vptq": {
        "indices": ("f16", "bf16", "i16", "u16", "i32", "i64"),
        "centroids.weight": ("f16", "bf16", "f32"),
    },
    "spqr": {"dense_weights": ("i32", "i64"), "row_offsets": ("i32", "i64"), "col_vals": ("i32", "i64")},
    "bitnet": {"weight": ("u8",), "weight_scale": ("f16", "bf16", "f32")},
}
"""Fields of their modules that no other format has together, with their dtypes."""
_SHAPES = {
    "exl3": ("trellis", 3),
    "aqlm": ("codes", 3),
    "bitnet": ("weight_scale", 1),
}
"""Numbers of dimensions that are looked at too."""


def recognized(stored: Mapping[str, tuple[tuple[int, ...], str]]) -> str:
    """Name in :data:`KNOWN` of the format whose modules store such fields, by name; empty if there is none.

    Examples
    --------
    >>> from qformats_gptq.elsewhere import recognized
    >>> recognized({"trellis": ((4, 8, 48), "i16"), "suh": ((64,), "f16")}), recognized({"weight": ((4, 8), "f16")})
    ('exl3', '')
    """
    for name, fields in _FIELDS.items():
        if not all(field in stored and stored[field][1] in dtypes for field, dtypes in fields.items()):
            continue
        field, dimensions = _SHAPES.get(name, ("", 0))
        if field and len(stored[field][0]) != dimensions:
            continue
        if name == "bitnet" and stored["weight_scale"][0] != (1,):
            continue
        return name
    return ""
