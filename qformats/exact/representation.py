"""The same values on another grid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qformats.errors import ConfigError, NotExactError
from qformats.exact.direct import Blocks, decide
from qformats.exact.reasons import explain
from qformats.exact.search import cost, search
from qformats.exact.source import Run, Source
from qformats.numbers.affine import AffineGrid
from qformats.numbers.dtypes import torch_dtype
from qformats.numbers.grid import Grid
from qformats.numbers.quantized import QuantizedTensor
from qformats.numbers.table import TableGrid

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["represent"]

_FIRST, _MOST = 1 << 13, 1 << 21
"""Elements checked first, and the most at a time; each step takes eight times as many as the previous one."""
_MEMORY = 1 << 21
"""Numbers that the search may hold at a time."""


@dataclass(eq=False)
class _Output:
    """Blocks of the target, filled in from the first to the last."""

    codes: Tensor
    scale: Tensor
    offset: Tensor

    def put(self, blocks: Blocks, first: int, start: int) -> None:
        """Write blocks from block `first` and element `start` on."""
        count, elements = len(blocks.ok), blocks.codes.numel()
        self.codes[start : start + elements] = blocks.codes.reshape(-1)
        self.scale[first : first + count] = blocks.scale
        self.offset[first : first + count] = blocks.offset


def represent(quantized: QuantizedTensor, grid: Grid) -> QuantizedTensor:
    """Tensor of the same float32 values (-0 is +0) on `grid`.

    Decided on codes and parameters alone. If the same scale works, codes are at most renumbered; codes and
    scales may come back as the very same tensors. Blocks that need another scale (a multiple, a fraction, a
    storable neighbour, the opposite sign) are searched. For symmetric grids, zero points and tables the search is
    complete: what is refused has no representation. For grids with a float minimum see
    :func:`qformats.exact.minimum.search_minimum`.

    Every code of the grid's bits is used, those below ``AffineGrid.low`` too: they are what a writer avoids, not what
    a reader refuses. Scales may be negative.

    Parameters
    ----------
    quantized : QuantizedTensor
        Any canonical tensor; blocks of any size, reordered columns, flat blocks. Not modified.
    grid : Grid
        An :class:`~qformats.numbers.grids.AffineGrid` or :class:`~qformats.numbers.grids.TableGrid`.

    Returns
    -------
    QuantizedTensor
        One that ``grid.validate`` accepts; scale and minimum in the grid's dtype.

    Raises
    ------
    NotExactError
        With the reason in one clause. The first block that does not fit ends the search.

    Examples
    --------
    >>> import torch
    >>> from qformats import AffineGrid
    >>> from qformats.errors import NotExactError
    >>> from qformats.interfaces import represent
    >>> four, eight = AffineGrid(4, block_size=32), AffineGrid(8, block_size=32)
    >>> weight = torch.linspace(-1, 1, 32).view(1, 32)
    >>> moved = represent(four.quantize(weight), eight)
    >>> bool((moved.dequantize() == four.quantize(weight).dequantize()).all()), moved.zero_point
    (True, 128)
    >>> try:
    ...     represent(eight.quantize(weight), four)
    ... except NotExactError as error:
    ...     print(error)
    levels -127 to 127 need 255 codes, but there are only 16.
    """
    if not isinstance(grid, AffineGrid | TableGrid):
        raise NotExactError("only its own plugin knows what its grid can represent")
    found = _as_it_is(quantized, grid) or _representation(quantized, grid)
    if not grid.independent:
        try:
            grid.validate(found)
        except ConfigError as error:
            raise NotExactError(str(error).rstrip(".")) from error
    return found


def _as_it_is(quantized: QuantizedTensor, grid: AffineGrid | TableGrid) -> QuantizedTensor | None:
    """The tensor with its own codes and parameters, if a look at their ranges shows that these are the grid's."""
    import torch

    codes, scale = quantized.codes, quantized.scale
    alike = isinstance(grid, AffineGrid) and grid.kind != "minimum" and not grid.flat and codes.numel() > 0
    plain = quantized.codebook is None and quantized.minimum is None and quantized.g_idx is None
    if not (alike and plain) or codes.dtype != torch.uint8 or quantized.block_size != grid.block_of(codes):
        return None
    assert isinstance(grid, AffineGrid)
    rows, columns = quantized.shape
    zero, whole = torch.as_tensor(quantized.zero_point), (rows, columns // quantized.block_size[1])
    if tuple(scale.shape) != whole or (zero.ndim and zero.shape != scale.shape) or zero.is_floating_point():
        return None
    top, dtype = grid.levels - 1, torch_dtype(grid.scale_dtype)
    known = int(zero.min()) >= 0 and int(zero.max()) <= top and int(codes.max()) <= top
    centred = grid.kind != "symmetric" or bool((zero == grid.center).all())
    stored = grid.storable(scale.float()).to(dtype)
    # Levels reach `top` at most, so that no value can be beyond float32.
    finite = bool((scale.float().abs() * top).isfinite().all())
    if not (known and centred and finite and bool((stored == scale).all())):
        return None
    own = grid.center if grid.kind == "symmetric" else zero.to(torch.int32).expand(whole)
    return QuantizedTensor(codes, stored, quantized.block_size, zero_point=own)


def _representation(quantized: QuantizedTensor, grid: AffineGrid | TableGrid) -> QuantizedTensor:
    """The tensor on the grid, its blocks one by one."""
    rows, columns = quantized.shape
    block = grid.block_size or columns
    if not block or (columns % block and not grid.flat):
        raise NotExactError(f"rows of {columns} do not divide into blocks of {block}")
    codes = quantized.codes.reshape(-1)
    count = -(-rows * columns // block)
    if not rows:
        empty = codes.new_zeros(0, dtype=torch_dtype("f32"))
        return _result(quantized, grid, _Output(codes, empty, empty))
    source = Source(quantized, block)
    even = source.total - source.total % block
    if even == source.total and source.unit >= 8:
        blocks = _at_once(source, grid)
        if blocks is not None:
            return _result(quantized, grid, _Output(blocks.codes, blocks.scale, blocks.offset))
    like = source.scale
    output = _Output(
        like.new_empty(source.total, dtype=torch_dtype("u8")), like.new_empty(count), like.new_empty(count)
    )
    start, step = 0, max(1, _FIRST // block) * block
    while start < even:
        stop = min(start + step, even)
        output.put(_decided(source.run(start, stop, block), source, grid, start), start // block, start)
        start, step = stop, min(8 * step, max(1, _MOST // block) * block)
    if even < source.total:
        output.put(
            _decided(source.run(even, source.total, source.total - even), source, grid, even), count - 1, even
        )
    return _result(quantized, grid, output)


def _at_once(source: Source, grid: AffineGrid | TableGrid) -> Blocks | None:
    """All blocks, if the range of all codes shows that they fit."""
    # Blocks of the source, where they are whole numbers of those of the target, are fewer.
    within = source.length and source.length % source.block == 0
    length = source.length if within else source.block
    run = source.run(0, source.total, length)
    blocks = decide(run, grid, look=False)
    if blocks is None:
        return None
    _refuse_infinite(run)

    def cut(values: Tensor) -> Tensor:
        return values[:, None].expand(-1, length // source.block).reshape(-1)

    return replace(blocks, scale=cut(blocks.scale), offset=cut(blocks.offset))


def _refuse_infinite(run: Run) -> None:
    infinite = run.infinite()
    if bool(infinite.any()):
        values = run.select(infinite.nonzero().flatten()).values()
        number = int((~values.isfinite()).sum())
        raise NotExactError(f"{number} value{'s are' if number > 1 else ' is'} infinite or NaN")


def _decided(run: Run, source: Source, grid: AffineGrid | TableGrid, start: int) -> Blocks:
    """Every block of a run on the grid; raises at the first that does not fit."""
    blocks = decide(run, grid, look=True)
    assert blocks is not None
    _refuse_infinite(run)
    left = (~blocks.ok).nonzero().flatten()
    if not len(left):
        return blocks
    codes, scale, offset = blocks.codes.clone(), blocks.scale.clone(), blocks.offset.clone()
    done, batch = 0, 8
    while done < len(left):
        chosen = left[done : done + batch]
        part = run.select(chosen)
        found = search(part.values(), grid)
        if not bool(found.ok.all()):
            raise NotExactError(explain(part.select((~found.ok).nonzero().flatten()[:1]), source, grid))
        codes[chosen], scale[chosen], offset[chosen] = found.codes, found.scale, found.offset
        done += batch
        batch = min(4 * batch, max(1, _MEMORY // cost(grid, run.codes.shape[1])))
    return Blocks(blocks.ok, codes, scale, offset)


def _result(quantized: QuantizedTensor, grid: AffineGrid | TableGrid, output: _Output) -> QuantizedTensor:
    """Put the parts together, with the grid's shapes and dtypes."""
    import torch

    rows, columns = quantized.shape
    codes = output.codes.view(rows, columns)
    dtype = torch_dtype(grid.scale_dtype)
    block_size = grid.block_of(codes)
    shape = (rows, columns // block_size[1]) if block_size[0] else (len(output.scale),)
    scale = output.scale.view(shape).to(dtype)
    if isinstance(grid, TableGrid):
        return QuantizedTensor(codes, scale, block_size, codebook=grid.table(codes))
    zero: Tensor | int = grid.center if grid.kind == "symmetric" else 0
    minimum = None
    if grid.kind == "zero_point":
        zero = output.offset.view(shape).to(torch.int32)
    elif grid.kind == "minimum":
        minimum = output.offset.view(shape).to(dtype)
    return QuantizedTensor(codes, scale, block_size, zero_point=zero, minimum=minimum)
