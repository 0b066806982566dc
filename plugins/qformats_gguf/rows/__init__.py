"""Packed rows on a processor, by vectors: decoded, or multiplied without being written.

This package imports numba. Import it inside functions.
"""

from qformats_gguf.rows.compiled import NAMES, decode, products

__all__ = ["NAMES", "decode", "products"]
