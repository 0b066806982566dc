"""Checks of what goes in: never changed, in whatever order it lies in memory, and always to the same result."""

from __future__ import annotations

from qformats.interfaces import Packer
from qformats.testing.compare import same_canonical, same_fields, same_values, unchanged
from qformats.testing.failure import NotApplicable, reported
from qformats.testing.weights import hard_weights, normal, sample, usual_shape, writable

__all__ = ["check_inputs_stay", "check_same_bytes_twice", "check_strides_do_not_matter"]


@reported
def check_inputs_stay(packer: Packer) -> None:
    """No method changes the tensors that it is given.

    Examples
    --------
    >>> import qformats
    >>> from qformats.testing import check_inputs_stay
    >>> check_inputs_stay(qformats.packer("gguf:q4_0"))
    """
    shape = usual_shape(packer)
    packed = sample(packer, shape)
    if packer.readable:
        with unchanged("dequantize", packed):
            packer.dequantize(packed)
    if packer.spec.level:
        with unchanged("unpack", packed):
            packer.unpack(packed)
    if packer.writable:
        for name, weight in [("normal weights", normal(shape)), *hard_weights(shape)]:
            with unchanged(f"encode_reference of {name}", weight):
                packer.encode_reference(weight)
    if packer.grid is not None:
        weight = normal(shape)
        importance = normal(shape[1:], seed=5).abs()
        with unchanged("grid.quantize", weight, importance):
            quantized = packer.grid.quantize(weight)
            packer.grid.quantize(weight, importance)
        with unchanged("pack", quantized):
            packer.pack(quantized)
        with unchanged("represent", quantized):
            packer.represent(quantized)
        with unchanged("grid.validate", quantized):
            packer.grid.validate(quantized)


@reported
def check_same_bytes_twice(packer: Packer) -> None:
    """Encoding and decoding the same thing again gives the same bytes and values.

    Examples
    --------
    >>> import qformats
    >>> from qformats.testing import check_same_bytes_twice
    >>> check_same_bytes_twice(qformats.packer("gguf:q4_0"))
    """
    if not packer.readable:
        raise NotApplicable("the format can only be copied")
    shape = usual_shape(packer)
    packed = sample(packer, shape)
    same_values(packer.dequantize(packed), packer.dequantize(packed), "values decoded again")
    if not packer.writable:
        return
    for name, weight in [("normal weights", normal(shape)), *hard_weights(shape)]:
        first, second = (packer.encode_reference(weight) for _ in range(2))
        same_fields(second, first, f"{name} encoded again")
    if packer.grid is not None:
        quantized = packer.grid.quantize(normal(shape))
        same_fields(packer.pack(quantized), packer.pack(quantized), "codes packed again")
        same_canonical(packer.grid.quantize(normal(shape)), quantized, "weights rounded again")


@reported
def check_strides_do_not_matter(packer: Packer) -> None:
    """A weight gives the same bytes however it lies in memory: transposed, or every second column of a larger one.

    Examples
    --------
    >>> import qformats
    >>> from qformats.testing import check_strides_do_not_matter
    >>> check_strides_do_not_matter(qformats.packer("gguf:q4_0"))
    """
    writable(packer)
    rows, columns = usual_shape(packer)
    weight = normal((rows, columns))
    expected = packer.encode_reference(weight)
    wide = normal((rows, 2 * columns), seed=3)
    wide[:, ::2] = weight
    for what, laid in (("transposed", weight.t().contiguous().t()), ("with gaps", wide[:, ::2])):
        same_fields(packer.encode_reference(laid), expected, f"bytes of a weight that lies {what}")
    packed = sample(packer, (rows, columns))
    values = packer.dequantize(packed)
    gaps = {}
    for name, value in packed.fields.items():
        gaps[name] = value.unsqueeze(-1).repeat_interleave(2, -1)[..., 0]
    same_values(
        packer.dequantize(type(packed)(packer, packed.shape, gaps)), values, "values of fields with gaps"
    )
