"""Plain numbers as a format."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from qformats.interfaces.packer import PackedTensor, Packer
from qformats.interfaces.spec import FieldSpec, FormatSpec

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DensePacker", "dense"]

_SUMMARIES = {
    "f32": "plain float32; holds every format here exactly",
    "f16": "plain float16; rounded once, at most 65504",
    "bf16": "plain bfloat16; rounded once",
}


class DensePacker(Packer):
    """Base of formats that store plain numbers of one dtype.

    Parameters
    ----------
    spec : FormatSpec
        Descriptor with a single field.
    dtype : str
        Short name of the dtype.

    Examples
    --------
    >>> import torch
    >>> from qformats.interfaces import dense
    >>> packed = dense("bf16").encode_reference(torch.tensor([1.0, 0.1]))
    >>> packed.format, packed.dequantize().tolist()
    ('dense:bf16', [1.0, 0.10009765625])
    """

    def __init__(self, spec: FormatSpec, dtype: str) -> None:
        self.spec = spec
        self.dense_dtype = dtype

    def stored(self, shape: Sequence[int]) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of the one stored field: the tensor itself."""
        assert self.dense_dtype is not None
        return {self.spec.fields[0].name: (tuple(shape), self.dense_dtype)}

    def row_step(self, shape: Sequence[int]) -> int:
        """Every row is separate."""
        return 1

    def dequantize(self, packed: PackedTensor) -> Tensor:
        """Values as float32."""
        import torch

        (name,) = self.stored(packed.shape)
        return self.intact(packed).fields[name].to(torch.float32)

    def encode_reference(self, dense: Tensor) -> PackedTensor:
        """Cast with one rounding to nearest even.

        Raises
        ------
        NonFiniteError
            If a value is NaN or infinite, or too large for the dtype.
        ShapeError
            If plain numbers of this shape cannot be stored.
        """
        from qformats.kernels.dense import cast

        assert self.dense_dtype is not None
        self.require(dense.shape)
        values = cast(dense, self.dense_dtype)
        return PackedTensor(self, tuple(dense.shape), {self.spec.fields[0].name: values})


@cache
def dense(dtype: str) -> DensePacker:
    """Packer of ``dense:f32``, ``dense:f16``, ``dense:bf16``, or of a dtype that can be read and copied.

    Parameters
    ----------
    dtype : str
        Short name of :mod:`qformats.numbers.dtypes`.

    Raises
    ------
    ConfigError
        If there is no such dtype.

    Examples
    --------
    >>> from qformats.interfaces import dense
    >>> dense("f16").name, dense("f16").nbytes((3, 5))
    ('dense:f16', 30)
    """
    spec = FormatSpec(
        family="dense",
        variant=dtype,
        summary=_SUMMARIES.get(dtype, f"plain {dtype}; read and copied"),
        fields=(FieldSpec("weight", ("N", "K"), dtype, "weight units"),),
        canonical=False,
        source="IEEE 754; safetensors:README.md",
    )
    return DensePacker(spec, dtype)
