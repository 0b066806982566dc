"""Weights that are hard to store, and shapes that a format can hold; all of them the same in every run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from qformats.interfaces import PackedTensor, Packer
from qformats.numbers import FLOATS, SIZES, GridParams, QuantizedTensor, torch_dtype
from qformats.testing.failure import NotApplicable

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "any_codes",
    "hard_weights",
    "normal",
    "random_bytes",
    "sample",
    "shapes",
    "usual_shape",
    "wild_params",
    "writable",
]

_WIDEST = 1024
_ROWS = (1, 2, 3, 5, 6, 8, 32, 64)
_COLUMNS = (1, 2, 3, 5, 7, 8, 16, 31, 32, 33, 64, 96, 123, 128, 160, 192, 256, 320, 512, 1024)


def normal(shape: tuple[int, ...], seed: int = 0, dtype: str = "f32") -> Tensor:
    """Normally distributed weights as models have them, standard deviation 0.05.

    Examples
    --------
    >>> from qformats.testing.weights import normal
    >>> normal((2, 3)).shape, bool((normal((2, 3)) == normal((2, 3))).all())
    (torch.Size([2, 3]), True)
    """
    import torch

    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.05
    return values.to(torch_dtype(dtype))


def hard_weights(shape: tuple[int, ...]) -> Iterator[tuple[str, Tensor]]:
    """Finite weights of a shape that writers stumble over, and what to call them.

    Examples
    --------
    >>> from qformats.testing.weights import hard_weights
    >>> [name for name, _ in hard_weights((2, 32))][:3]
    ['zeros', 'negative zeros', 'a constant']
    """
    import torch

    plain = normal(shape, seed=1)
    yield "zeros", torch.zeros(shape)
    yield "negative zeros", torch.full(shape, -0.0)
    yield "a constant", torch.full(shape, 0.125)
    yield "a negative constant", torch.full(shape, -3e-3)
    yield "subnormal weights", torch.full(shape, 1e-40)
    yield "weights below every stored scale", plain * 1e-7
    yield "weights of one sign", plain.abs() + 5
    yield "halves of whole numbers", (plain * 100).round() / 2
    outlier = plain.clone()
    outlier.view(-1)[outlier.numel() // 2] = -100.0
    yield "an outlier", outlier
    alone = torch.zeros(shape)
    alone.view(-1)[-1] = 1.0
    yield "a single weight that is not zero", alone


def shapes(packer: Packer) -> list[tuple[int, int]]:
    """Every shape of a fixed list that a format can hold, the smallest first.

    Examples
    --------
    >>> import qformats
    >>> from qformats.testing.weights import shapes
    >>> shapes(qformats.packer("dense:f32"))[:2]
    [(1, 1), (1, 2)]
    """
    every = [(rows, columns) for rows in _ROWS for columns in (*_COLUMNS, *_blocks(packer))]
    return sorted({shape for shape in every if not packer.veto(shape)}, key=lambda s: (math.prod(s), s))


def _blocks(packer: Packer) -> tuple[int, ...]:
    """Columns of two blocks, of four, and of one."""
    block = max(packer.spec.block_size, packer.grid.block_size if packer.grid is not None else 0)
    return (2 * block, 4 * block, block) if block > 1 else ()


def usual_shape(packer: Packer, blocks: int = 2) -> tuple[int, int]:
    """Small shape that a format can hold, of several rows and `blocks` blocks per row.

    Raises
    ------
    NotApplicable
        If the format refuses whatever is tried.
    """
    wanted = [size * blocks for size in _blocks(packer)[-1:]]
    if wanted and wanted[0] > _WIDEST:
        # Where the last block may be short, little of it will do.
        wanted.insert(0, _blocks(packer)[-1] + 32)
    for rows in (6, 8, 16, 32, 64, 128):
        for columns in (*wanted, *_blocks(packer), 96, 64, 128, 256, 512, 1024):
            if not packer.veto((rows, columns)):
                return rows, columns
    raise NotApplicable(f"veto refuses every shape that is tried: {packer.veto((128, 1024))}")


def writable(packer: Packer) -> None:
    """Refuse to go on with a format that cannot be written."""
    if not packer.writable:
        raise NotApplicable("the format is only read")


def sample(packer: Packer, shape: tuple[int, int] | None = None, seed: int = 0) -> PackedTensor:
    """A packed tensor of a format: normal weights where it can be written, else random bytes and finite floats."""
    shape = shape or usual_shape(packer)
    if packer.writable:
        return packer.encode_reference(normal(shape, seed))
    packed = random_bytes(packer, shape, seed)
    for name, (dims, dtype) in packer.stored(shape).items():
        if dtype in FLOATS:
            # Of random bytes a few are NaN or infinite, of which no check of values could tell anything.
            packed.fields[name].copy_(normal(dims, seed, dtype))
    return packed


def random_bytes(packer: Packer, shape: tuple[int, int], seed: int = 0) -> PackedTensor:
    """A packed tensor whose fields hold random bytes."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    fields = {}
    for name, (dims, dtype) in packer.stored(shape).items():
        data = torch.randint(0, 256, (math.prod(dims) * SIZES[dtype],), generator=generator)
        if dtype == "bool":
            data &= 1
        fields[name] = data.to(torch.uint8).view(torch_dtype(dtype)).view(dims)
    return PackedTensor(packer, shape, fields)


def wild_params(packer: Packer, shape: tuple[int, int], seed: int = 0) -> GridParams:
    """Parameters of all blocks as a quantizer may find them: not yet storable.

    Those in float32 use all bits of the mantissa, and minima all but cancel the products: a fused multiply-add, or a
    product taken apart, gives other values.
    """
    import torch

    assert packer.grid is not None
    like = packer.grid.quantize(normal(shape, seed))
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(like.scale.shape, generator=generator) * 0.01 + 0.001
    zero = minimum = None
    if like.minimum is not None:
        level = torch.randint(1, packer.grid.levels, scale.shape, generator=generator)
        minimum = -scale * level * (1 + 2.0**-20 * torch.randn(scale.shape, generator=generator))
    elif isinstance(like.zero_point, torch.Tensor):
        zero = torch.randn(scale.shape, generator=generator) * packer.grid.levels
    return GridParams(scale, zero, minimum)


def any_codes(packer: Packer, shape: tuple[int, int], seed: int = 0) -> QuantizedTensor:
    """A canonical tensor on a format's grid in which every code occurs, those that its own rule never chooses too."""
    import torch

    assert packer.grid is not None
    generator = torch.Generator().manual_seed(seed)
    count = math.prod(shape)
    codes = torch.arange(count)[torch.randperm(count, generator=generator)] % packer.grid.levels
    params = packer.grid.project(wild_params(packer, shape, seed))
    return packer.grid.quantized(codes.to(torch.uint8).view(shape), params)
