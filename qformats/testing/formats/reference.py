"""Check of the fast way from weights to bytes against the slow one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qformats.interfaces import PackedTensor, Packer
from qformats.testing.compare import same_canonical, same_fields, same_values
from qformats.testing.failure import NotApplicable, reported
from qformats.testing.weights import hard_weights, normal, shapes, usual_shape, writable

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["check_reference_bytes"]


@reported
def check_reference_bytes(packer: Packer) -> None:
    """``encode_reference`` and ``quantize_reference`` give what ``grid.reference`` does, for weights of every dtype.

    Examples
    --------
    >>> import qformats
    >>> from qformats.testing import check_reference_bytes
    >>> check_reference_bytes(qformats.packer("gguf:q4_0"))
    """
    writable(packer)
    if packer.grid is None:
        raise NotApplicable("plain numbers are cast, not rounded to a grid")
    shape = usual_shape(packer)
    weights = [("normal weights", normal(shape)), *hard_weights(shape)]
    weights += [(f"weights of {small}", normal(small)) for small in shapes(packer)[:3]]
    for name, weight in weights:
        codes, params = packer.grid.reference(weight)
        expected = packer.pack(packer.grid.quantized(codes, params))
        same_fields(packer.encode_reference(weight), expected, f"{name}: bytes of encode_reference")
        same_fields(_packed(packer, weight), expected, f"{name}: bytes of quantize_reference")
    for dtype in ("f16", "bf16"):
        weight = normal(shape, dtype=dtype)
        codes, params = packer.grid.reference(weight)
        expected = packer.pack(packer.grid.quantized(codes, params))
        same_fields(_packed(packer, weight), expected, f"{dtype} weights: bytes of quantize_reference")
        found = packer.encode_reference(weight)
        what = f"{dtype} weights: bytes of encode_reference"
        # What was packed from codes alone does not know the dtype of the weight.
        if packer.made_from(found) == packer.made_from(expected):
            same_fields(found, expected, what)
        else:
            same_canonical(packer.unpack(found), packer.unpack(expected), what)
            same_values(packer.dequantize(found), packer.dequantize(expected), what)


def _packed(packer: Packer, weight: Tensor) -> PackedTensor:
    """Bytes of what ``quantize_reference`` gives, if it lies on the grid."""
    quantized = packer.quantize_reference(weight)
    if packer.grid is not None:
        packer.grid.validate(quantized)
    return packer.pack(quantized)
