"""Formats of folders that no plugin here reads: what they are, and the program that reads them."""

from __future__ import annotations

__all__ = ["KNOWN", "SIMILAR"]

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
    "eetq": "bytes in the order of CUTLASS's kernels, which Transformers reads with the package eetq",
}
"""By ``quant_method``, which is also what users call them."""

SIMILAR = {**dict.fromkeys(KNOWN, ("4bit-128g",)), "eetq": ("8bit-128g",), "bitnet": ("2bit-128g",)}
"""Variants of this family that come nearest."""
