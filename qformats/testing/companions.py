"""The smallest packers there are, one for each kind of grid: what quantizers and exactness are checked with."""

from __future__ import annotations

from functools import cache

from qformats.interfaces import FieldSpec, FormatSpec, PackedTensor, Packer
from qformats.numbers import AffineGrid, QuantizedTensor, TableGrid, torch_dtype

__all__ = ["Plain", "companions"]

_TABLE = (-1.0, -0.7, -0.5, -0.4, -0.28, -0.18, -0.09, 0.0, 0.08, 0.16, 0.25, 0.34, 0.44, 0.56, 0.72, 1.0)


class Plain(Packer):
    """A byte for each code, and parameters as they are.

    Parameters
    ----------
    variant : str
        Second half of the name.
    grid : AffineGrid or TableGrid
        Any generic grid.

    Examples
    --------
    >>> from qformats import AffineGrid
    >>> from qformats.testing.companions import Plain
    >>> Plain("int4", AffineGrid(4, 16)).nbytes((2, 32))
    72
    """

    def __init__(self, variant: str, grid: AffineGrid | TableGrid) -> None:
        self.grid: AffineGrid | TableGrid = grid
        self.kind = grid.kind if isinstance(grid, AffineGrid) else "table"
        parameter = ("N", f"K / {grid.block_size}" if grid.block_size else "1")
        fields = [FieldSpec("codes", ("N", "K"), "u8"), FieldSpec("scale", parameter, grid.scale_dtype)]
        if self.kind == "zero_point":
            fields.append(FieldSpec("zero", parameter, "i32"))
        if self.kind == "minimum":
            fields.append(FieldSpec("minimum", parameter, grid.scale_dtype))
        size = grid.block_size
        self.spec = FormatSpec("companion", variant, "for checks", tuple(fields), block_size=size)

    def pack(self, quantized: QuantizedTensor) -> PackedTensor:
        """Bytes of a canonical tensor."""
        import torch

        dtype = torch_dtype(self.grid.scale_dtype)
        fields = {"codes": quantized.codes.to(torch.uint8), "scale": quantized.scale.to(dtype)}
        if self.kind == "zero_point":
            zero = torch.as_tensor(quantized.zero_point, dtype=torch.int32)
            fields["zero"] = zero.expand(quantized.scale.shape).contiguous()
        if quantized.minimum is not None:
            fields["minimum"] = quantized.minimum.to(dtype)
        return PackedTensor(self, quantized.shape, fields)

    def unpack(self, packed: PackedTensor) -> QuantizedTensor:
        """Canonical form."""
        fields = self.checked(packed).fields
        codes = fields["codes"]
        zero = self.grid.center if isinstance(self.grid, AffineGrid) and self.kind == "symmetric" else 0
        return QuantizedTensor(
            codes,
            fields["scale"].float(),
            (1, self.grid.columns(codes)),
            zero_point=fields.get("zero", zero),
            minimum=fields["minimum"].float() if "minimum" in fields else None,
            codebook=self.grid.table(codes) if isinstance(self.grid, TableGrid) else None,
        )


@cache
def companions() -> tuple[Plain, ...]:
    """A packer of each kind of grid.

    Examples
    --------
    >>> from qformats.testing.companions import companions
    >>> [packer.name for packer in companions()][:2]
    ['companion:symmetric', 'companion:row']
    """
    return (
        Plain("symmetric", AffineGrid(4, 32)),
        Plain("row", AffineGrid(8, 0, scale_dtype="f32", low=1)),
        Plain("zero-point", AffineGrid(4, 32, kind="zero_point")),
        Plain("narrow", AffineGrid(2, 16, kind="zero_point", scale_dtype="f32")),
        Plain("minimum", AffineGrid(4, 32, kind="minimum")),
        Plain("wide-minimum", AffineGrid(5, 16, kind="minimum", scale_dtype="f32")),
        Plain("table", TableGrid(_TABLE, 32)),
    )
