"""Checks of what a format says about itself, before any weight is read."""

from __future__ import annotations

import math

from qformats.interfaces import KernelSpec, Packer
from qformats.interfaces.spec import MODES
from qformats.numbers import E2M1, SIZES, AffineGrid, Float8Grid, Grid, TableGrid
from qformats.testing.compare import same_bytes
from qformats.testing.failure import expect, reported
from qformats.testing.weights import hard_weights, normal, shapes, usual_shape, writable

__all__ = ["check_descriptor", "check_fields_match_descriptor", "check_sizes_do_not_depend_on_data"]

_DTYPES = ("f32", "f16", "bf16")


@reported
def check_descriptor(packer: Packer) -> None:
    """The descriptor agrees with the grid and with itself.

    Examples
    --------
    >>> import qformats
    >>> from qformats.testing import check_descriptor
    >>> check_descriptor(qformats.packer("dense:f32"))
    """
    spec, grid = packer.spec, packer.grid
    names = [field.name for field in spec.fields]
    expect(names, "no fields", "a field or more")
    expect(len({*names}) == len(names), f"fields {', '.join(names)}", "a name of its own for each field")
    expect(all((spec.family, spec.variant)), f"the name {spec.name!r}", "family:variant")
    expect(spec.summary, "no summary", "one line that tells the format from its neighbours")
    if packer.dense_dtype is not None:
        expect(grid is None, "a grid and a dense_dtype", "one of them")
        expect(not spec.canonical, "canonical=True", "canonical=False: plain numbers have no codes")
    if grid is not None:
        expect(spec.canonical, "a grid and canonical=False", "canonical=True", "What has a grid has codes")
        expect(
            spec.block_size == grid.block_size,
            f"block_size {spec.block_size} in the spec",
            f"{grid.block_size}, as the grid has it",
        )
        if spec.bits is not None:
            least = max(1, math.ceil(math.log2(grid.levels)))
            expect(spec.bits >= least, f"codes of {spec.bits} bits", f"{least} for {grid.levels} levels")
    if spec.kernel is not None:
        expect(spec.canonical, "a kernel and canonical=False", "canonical=True")
        _kernel(spec.kernel, grid)


def _kernel(kernel: KernelSpec, grid: Grid | None) -> None:
    expect(kernel.mode in MODES, f"kernel mode {kernel.mode!r}", " or ".join(MODES))
    expect(
        kernel.scale_dtype in ("f16", "f32"),
        f"kernel scales of {kernel.scale_dtype}",
        "f16 or f32 (for bf16)",
    )
    if isinstance(grid, Float8Grid) or (isinstance(grid, TableGrid) and tuple(grid.codebook) == E2M1):
        mode = "float"
    elif isinstance(grid, TableGrid):
        mode = "table"
    elif isinstance(grid, AffineGrid):
        mode = "minimum" if grid.kind == "minimum" else "affine"
    else:
        return
    expect(kernel.mode == mode, f"kernel mode {kernel.mode!r}", f"{mode!r}, as the grid is")
    expect(
        kernel.block_size == grid.block_size,
        f"kernel block_size {kernel.block_size}",
        f"{grid.block_size}, as the grid has it",
    )
    expect(1 << kernel.bits >= grid.levels, f"kernel bits {kernel.bits}", f"enough for {grid.levels} levels")
    wide = "f16" if grid.scale_dtype == "f16" else "f32"
    expect(kernel.scale_dtype == wide, f"kernel scales of {kernel.scale_dtype}", f"{wide} for the grid's")


@reported
def check_fields_match_descriptor(packer: Packer) -> None:
    """Packed fields have the names, shapes, dtypes and bytes that were predicted, and tell the weight's shape again.

    Examples
    --------
    >>> import qformats
    >>> from qformats.testing import check_fields_match_descriptor
    >>> check_fields_match_descriptor(qformats.packer("dense:f16"))
    """
    for shape in {usual_shape(packer), *shapes(packer)[:3]}:
        stored = packer.stored(shape)
        predicted = sum(math.prod(dims) * SIZES[dtype] for dims, dtype in stored.values())
        of_spec = packer.spec.nbytes(*shape)
        expect(packer.nbytes(shape) == predicted, f"nbytes({shape}) {packer.nbytes(shape)}", str(predicted))
        expect(
            of_spec == predicted,
            f"{of_spec} bytes of {shape} in the spec",
            f"{predicted}, as stored() has it",
        )
        described = {field.name: (field.resolve(*shape), field.dtype) for field in packer.spec.fields}
        expect(described == stored, f"stored({shape}) {stored}", f"{described}, as the spec has it")
    writable(packer)
    shape = usual_shape(packer)
    stored = packer.stored(shape)
    for dtype in _DTYPES:
        packed = packer.encode_reference(normal(shape, dtype=dtype))
        expect(packed.packer is packer, f"a tensor of {packed.format}", "one of this packer")
        expect(tuple(packed.shape) == shape, f"shape {tuple(packed.shape)}", str(shape))
        expect(packed.fields.keys() == stored.keys(), f"fields {', '.join(packed.fields)}", ", ".join(stored))
        packer.checked(packed)
        expect(packed.nbytes == packer.nbytes(shape), f"{packed.nbytes} bytes", f"{packer.nbytes(shape)}")
        values = packer.dequantize(packed)
        found = f"values of {values.dtype} and shape {tuple(values.shape)}"
        expect(
            str(values.dtype) == "torch.float32" and tuple(values.shape) == shape, found, f"float32, {shape}"
        )
        for name, value in packer.fixed(shape, dtype).items():
            expect(name in stored, f"a fixed field {name!r}", "one of " + ", ".join(stored))
            what = f"field {name!r} of a {dtype} weight, which fixed() tells beforehand"
            same_bytes(packed.fields[name], value, what)


@reported
def check_sizes_do_not_depend_on_data(packer: Packer) -> None:
    """Weights of one shape take the same bytes in the same fields, whatever they are.

    Examples
    --------
    >>> import qformats
    >>> from qformats.testing import check_sizes_do_not_depend_on_data
    >>> check_sizes_do_not_depend_on_data(qformats.packer("dense:bf16"))
    """
    writable(packer)
    shape = usual_shape(packer)
    usual = _dims(packer, shape, "weights as usual", None)
    for name, weight in hard_weights(shape):
        dims = _dims(packer, shape, name, weight)
        expect(dims == usual, f"fields {dims} for {name}", f"{usual}, as for other weights")


def _dims(packer: Packer, shape: tuple[int, int], name: str, weight: object) -> dict[str, tuple[int, ...]]:
    from torch import Tensor

    packed = packer.encode_reference(weight if isinstance(weight, Tensor) else normal(shape))
    return {field: tuple(value.shape) for field, value in packed.fields.items()}
