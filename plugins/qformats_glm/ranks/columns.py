"""Row-parallel weights: cutting a matrix into ranges of columns, and joining them, on the stored bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from qformats import PackedTensor, StoredTensor
from qformats.errors import ShapeError
from qformats.interfaces import dense
from qformats_glm.packers import GLMPacker

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["cut_columns", "join_columns"]


def join_columns(name: str, parts: Sequence[StoredTensor]) -> StoredTensor:
    """The parts of a row-parallel weight, beside each other.

    Quantized parts with the same scales become a tensor with one scale per row, and others one with a scale for each
    part (``-tp{p}``): either way no value changes. The scales are compared now, since the format depends on them.

    Parameters
    ----------
    name : str
        Name of the result.
    parts : sequence of StoredTensor
        Of one shape and one format, in the order of the ranks.
    """
    import torch

    first = parts[0]
    shape = (first.shape[0], first.shape[1] * len(parts))
    own = first.packer if isinstance(first.packer, GLMPacker) else None
    same = own is None or all(torch.equal(_scale(part), _scale(first)) for part in parts[1:])
    packer = first.packer if own is None or same else own.with_parts(len(parts))

    def load(start: int, stop: int) -> PackedTensor:
        pieces = [part.read(start, stop) for part in parts]
        if len(pieces) == 1:
            return pieces[0]
        fields = {"weight": torch.cat([piece.fields["weight"] for piece in pieces], 1)}
        if own is not None:
            scales = [piece.fields["weight_scale"] for piece in pieces]
            fields["weight_scale"] = scales[0] if same else torch.stack(scales, 1)
        return PackedTensor(packer, (stop - start, shape[1]), fields)

    nbytes = sum(part.nbytes for part in parts)
    if own is not None and same:
        nbytes = own.spec.nbytes(*shape)
    return replace(first, name=name, shape=shape, packer=packer, nbytes=nbytes, load=load)


def _scale(part: StoredTensor) -> Tensor:
    return part.read().fields["weight_scale"]


def cut_columns(tensor: StoredTensor, rank: int, ranks: int) -> StoredTensor:
    """The columns of one rank, every part with its own copy of the scales.

    Where a row has several scales (``-tp{p}``), a rank gets those of its columns: one, or again several if its
    columns reach over more than one of the old parts.

    Parameters
    ----------
    tensor : StoredTensor
        Plain numbers or of the family ``glm``, ``(N, K)``; another format is decoded.
    rank, ranks : int
        Which part, of how many.

    Raises
    ------
    ShapeError
        If the columns cannot be divided so.
    """
    if ranks == 1:
        return tensor
    rows, columns = tensor.shape
    if columns % ranks:
        raise ShapeError(tensor.name, tensor.shape, f"a number of columns that {ranks} ranks divide evenly")
    width = columns // ranks
    own = tensor.packer
    if not isinstance(own, GLMPacker):
        return _cut_plain(tensor, rank, width)
    # Blocks so narrow that the edges of old and new parts are edges of blocks.
    edges = math.lcm(own.parts, ranks) if own.parts > 1 else ranks
    held = edges // ranks
    new = own.with_parts(held)
    problem = new.veto((rows, width)) if columns % edges == 0 else f"{columns} columns in {edges} parts"
    if problem:
        raise ShapeError(tensor.name, tensor.shape, f"columns that {ranks} ranks divide evenly ({problem})")
    order = [(rank * held + block) * own.parts // edges for block in range(held)]
    first, last = rank * width * own.bits // 8, (rank + 1) * width * own.bits // 8

    def load(start: int, stop: int) -> PackedTensor:
        part = tensor.read(start, stop)
        scale = part.fields["weight_scale"]
        if own.parts > 1:
            scale = scale[:, order] if held > 1 else scale[:, order[0]]
        fields = {"weight": part.fields["weight"][:, first:last], "weight_scale": scale}
        return PackedTensor(new, (stop - start, width), fields)

    nbytes = new.spec.nbytes(rows, width)
    return replace(tensor, shape=(rows, width), packer=new, nbytes=nbytes, load=load)


def _cut_plain(tensor: StoredTensor, rank: int, width: int) -> StoredTensor:
    plain = not tensor.packer.quantizes
    packer = dense(tensor.packer.dense_dtype or "f32")

    def load(start: int, stop: int) -> PackedTensor:
        if plain:
            (values,) = tensor.read(start, stop).fields.values()
        else:
            values = tensor.dequantize()[start:stop]
        part = values[:, rank * width : (rank + 1) * width]
        return PackedTensor(packer, tuple(part.shape), {"weight": part})

    return replace(
        tensor,
        shape=(tensor.shape[0], width),
        packer=packer,
        nbytes=tensor.nbytes * width // max(1, tensor.shape[1]),
        load=load,
        step=tensor.step if plain else 0,
        origin=tensor.origin if plain else tensor.stored_packer,
    )
