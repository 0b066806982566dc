"""Tensors as GGUF keeps them, and back: rows in another order, experts stacked, parts apart, norms with 1 added."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from qformats import PackedTensor, Packer, StoredTensor
from qformats.interfaces import concat_rows, cut, dense
from qformats_gguf.architectures import Piece, Regroup, TensorMapping

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["assembled", "from_gguf", "shifted", "stack_name", "to_gguf"]

_F32_BYTES = 4
_NEIGHBOURS = 4
"""How far a rounded logarithm may be from the number that was exponentiated: the float32 exponential of torch is off by
one in the last place, and below 1 the logarithm has more digits than it."""
_EXPERT = re.compile(r"\.(\d+)(?=(\.[^.]+)?\.[^.]+$)")


def stack_name(name: str) -> str:
    """Name of the tensor of all experts, by that of one of them.

    Examples
    --------
    >>> from qformats_gguf.rearrange import stack_name
    >>> stack_name("model.layers.3.mlp.experts.17.up_proj.weight")
    'model.layers.3.mlp.experts.up_proj.weight'
    """
    return _EXPERT.sub("", name)


def to_gguf(parts: Sequence[tuple[StoredTensor, TensorMapping]]) -> StoredTensor:
    """What a file holds for these canonical tensors: of several, a stack.

    Parameters
    ----------
    parts : sequence of (StoredTensor, TensorMapping)
        All experts of a stack in their order, or one tensor.
    """
    found = [_moved(tensor, mapping) for tensor, mapping in parts]
    return found[0] if not parts[0][1].stack else _stacked(found)


def from_gguf(tensor: StoredTensor, mappings: Sequence[TensorMapping]) -> list[StoredTensor]:
    """Canonical tensors in one of a file, whose shape has been checked."""
    stack = mappings[0].stack
    if stack:
        matrices, start = [], 0
        for at in range(0, len(mappings), stack):
            group = mappings[at : at + stack]
            matrices += [_expert(tensor, number, mapping, start) for number, mapping in enumerate(group)]
            start += group[0].shape[0]
        return matrices
    ends = list(itertools.accumulate(mapping.shape[0] for mapping in mappings))
    found = []
    for mapping, end in zip(mappings, ends, strict=True):
        part = tensor if len(mappings) == 1 else tensor.slice_rows(end - mapping.shape[0], end)
        part = part.renamed(mapping.canonical)
        if mapping.permute is not None:
            part = part.take_rows(mapping.permute.inverse(part.rows))
        if mapping.squeezed:
            part = _reshaped(part, mapping.shape)
        if mapping.negated_exp:
            part = _elementwise(part, _log_of_negated)
        found.append(shifted(part, -mapping.offset) if mapping.offset else part)
    return found


def assembled(parts: Sequence[tuple[StoredTensor, TensorMapping]]) -> StoredTensor:
    """The canonical tensor of which these are all the pieces, in the order of the table."""
    tensors, first = [tensor for tensor, _ in parts], parts[0][1]
    if isinstance(first.permute, Regroup):
        whole = Regroup(first.permute.groups, first.permute.parts)
        return concat_rows(first.canonical, tensors).take_rows(whole.inverse(first.shape[0]))
    pieces = [mapping.piece for _, mapping in parts if mapping.piece is not None]
    name, shape = first.canonical, first.shape
    if all(piece.whole_rows for piece in pieces):
        return concat_rows(name, tensors)
    plain, rows = _plain(tensors), shape[0] // pieces[0].groups

    def load(start: int, stop: int) -> PackedTensor:
        import torch

        # A group is one matrix of each tensor.
        values = torch.empty((stop - start, *shape[1:]), dtype=torch.float32)
        whole = values.view((stop - start) // rows, rows, *shape[1:])
        for tensor, piece in zip(tensors, pieces, strict=True):
            part = tensor.read(start // rows, stop // rows).dequantize()
            part = part.transpose(-1, -2) if piece.swapped else part
            whole[_where(piece)] = part
        return plain.encode_reference(values) if plain.dense_dtype != "f32" else _packed(plain, values)

    return replace(
        tensors[0],
        name=name,
        shape=shape,
        packer=plain,
        nbytes=sum(tensor.nbytes for tensor in tensors),
        load=load,
        step=rows,
        origin=tensors[0].stored_packer if plain.name != tensors[0].stored_format else None,
        names=frozenset[str]().union(*(tensor.names for tensor in tensors)),
    )


def _where(piece: Piece) -> tuple[slice, ...]:
    return (*(slice(None),) * piece.axis, slice(piece.start, piece.stop))


def _plain(tensors: Sequence[StoredTensor]) -> Packer:
    """The format of plain tensors that have one, else float32."""
    formats = {tensor.format for tensor in tensors}
    return tensors[0].packer if len(formats) == 1 and not tensors[0].packer.quantizes else dense("f32")


def _packed(packer: Packer, values: Tensor) -> PackedTensor:
    return PackedTensor(packer, tuple(values.shape), {packer.spec.fields[0].name: values})


def _taken(tensor: StoredTensor, mapping: TensorMapping) -> StoredTensor:
    """The piece of a matrix that a mapping says; whole rows stay packed where they are stored by rows."""
    piece = mapping.piece
    assert piece is not None
    order = np.arange(tensor.rows, dtype=np.intp).reshape(piece.grouped(tensor.shape[:1]))
    found = tensor.take_rows(np.ascontiguousarray(order[_where(piece)]).reshape(-1))
    if not piece.groups:
        return found
    if not piece.swapped and _by_rows(found.packer):
        found = _in_groups(found, mapping.stored_shape)
    else:
        found = _computed(found, mapping, lambda part: part.transpose(-1, -2) if piece.swapped else part)
    # No layer of the model has these numbers by themselves. All groups have the inputs of the whole; turned ones have
    # others.
    inputs = () if piece.swapped else (tensor.name,) * piece.groups
    return replace(found, name=mapping.gguf, matrices=inputs)


def _in_groups(tensor: StoredTensor, shape: tuple[int, ...]) -> StoredTensor:
    """Rows of a matrix as matrices below each other, on their bytes."""
    rows = shape[1]

    def load(start: int, stop: int) -> PackedTensor:
        packed = tensor.read(start * rows, stop * rows)
        part = (stop - start, *shape[1:])
        dims = packed.packer.stored(part)
        fields = {name: value.reshape(dims[name][0]) for name, value in packed.fields.items()}
        return PackedTensor(packed.packer, part, fields)

    return replace(tensor, shape=shape, load=load, step=1)


def _computed(
    tensor: StoredTensor, mapping: TensorMapping, change: Callable[[Tensor], Tensor]
) -> StoredTensor:
    """What is made of the values of a matrix with groups, from all of it."""
    shape, plain = mapping.stored_shape, _plain([tensor])

    def load(start: int, stop: int) -> PackedTensor:
        read = tensor.read()
        values = read.dequantize() if read.packer.quantizes else next(iter(read.fields.values()))
        values = values.reshape(shape[0], -1, tensor.shape[-1])[start:stop]
        return _packed(plain, change(values).contiguous())

    origin = tensor.stored_packer if plain.name != tensor.stored_format else None
    nbytes = tensor.nbytes * math.prod(shape) // max(1, tensor.numel)
    return replace(tensor, shape=shape, packer=plain, nbytes=nbytes, load=load, step=1, origin=origin)


def _moved(tensor: StoredTensor, mapping: TensorMapping) -> StoredTensor:
    if mapping.piece is not None:
        tensor = _taken(tensor, mapping)
    if mapping.permute is not None:
        tensor = tensor.take_rows(mapping.permute.rows(tensor.rows))
    if mapping.squeezed:
        tensor = _reshaped(tensor, mapping.stored_shape)
    if mapping.negated_exp:
        tensor = _elementwise(tensor, _negated_exp)
    return shifted(tensor, mapping.offset) if mapping.offset else tensor


def shifted(tensor: StoredTensor, amount: float) -> StoredTensor:
    """The same numbers plus a constant, added in float32 as upstream's converter does."""
    return _elementwise(tensor, lambda values: values + amount)


def _negated_exp(values: Tensor) -> Tensor:
    return -values.exp()


def _log_of_negated(values: Tensor) -> Tensor:
    """Numbers of which `_negated_exp` gives these, or nearly so where no float32 number does.

    Of neighbours of the logarithm, rounded once, the first that comes back: a file that was made of numbers gives the
    same file again.
    """
    import torch

    logarithms = (-values.double()).log().float()
    found, missed = logarithms.clone(), _negated_exp(logarithms) != values
    up = down = logarithms
    for _ in range(_NEIGHBOURS):
        up, down = (
            torch.nextafter(up, torch.full_like(up, torch.inf)),
            torch.nextafter(down, torch.full_like(down, -torch.inf)),
        )
        for other in (up, down):
            hits = missed & (_negated_exp(other) == values)
            found, missed = torch.where(hits, other, found), missed & ~hits
    return found


def _reshaped(tensor: StoredTensor, shape: tuple[int, ...]) -> StoredTensor:
    """The same plain numbers with other dimensions after the first."""
    plain = _plain([tensor])

    def load(start: int, stop: int) -> PackedTensor:
        read = tensor.read(start, stop)
        values = read.dequantize() if read.packer.quantizes else next(iter(read.fields.values()))
        return _packed(plain, values.reshape(stop - start, *shape[1:]))

    origin = tensor.stored_packer if plain.name != tensor.stored_format else None
    nbytes = tensor.nbytes if plain.name == tensor.format else tensor.numel * _F32_BYTES
    return replace(tensor, shape=shape, packer=plain, nbytes=nbytes, load=load, step=1, origin=origin)


def _elementwise(tensor: StoredTensor, change: Callable[[Tensor], Tensor]) -> StoredTensor:
    """Other numbers of the same shape, in float32."""
    plain = dense("f32")

    def load(start: int, stop: int) -> PackedTensor:
        values = change(tensor.read(start, stop).dequantize().float())
        return PackedTensor(plain, tuple(values.shape), {"weight": values})

    return replace(
        tensor,
        packer=plain,
        nbytes=tensor.numel * _F32_BYTES,
        load=load,
        origin=tensor.stored_packer if tensor.stored_format != plain.name else None,
    )


def _stacked(parts: Sequence[StoredTensor]) -> StoredTensor:
    """Matrices as one tensor of three dimensions, on their bytes if they are stored by rows and alike.

    If they are alike in another quantized format, they stay apart until they are converted, one by one.
    """
    first = parts[0]
    same = all(part.format == first.format for part in parts)
    alike, separate = same and _by_rows(first.packer), same and not _by_rows(first.packer)
    packer = first.packer if alike else dense("f32")

    def load(start: int, stop: int) -> PackedTensor:
        import torch

        if separate and stop - start == 1:
            return parts[start].read()
        shape = (stop - start, *first.shape)
        read = [part.read() for part in parts[start:stop]]
        if not alike:
            return PackedTensor(packer, shape, {"weight": torch.stack([each.dequantize() for each in read])})
        dims = packer.stored(shape)
        fields = {
            name: torch.cat([each.fields[name].reshape(-1) for each in read]).reshape(dims[name][0])
            for name in read[0].fields
        }
        return PackedTensor(packer, shape, fields)

    return replace(
        first,
        name=stack_name(first.name),
        shape=(len(parts), *first.shape),
        packer=first.packer if same else packer,
        nbytes=sum(part.nbytes for part in parts),
        load=load,
        step=1,
        origin=first.origin if same else first.stored_packer,
        separate=separate,
        names=frozenset[str]().union(*(part.names for part in parts)),
        matrices=tuple(part.name for part in parts),
    )


def _by_rows(packer: Packer) -> bool:
    """Whether the bytes of matrices below each other are those of the stack."""
    return packer.family == "gguf" or not packer.quantizes


def _expert(tensor: StoredTensor, number: int, mapping: TensorMapping, first: int) -> StoredTensor:
    """One matrix of a stack, or rows of it from `first` on."""
    shape = tensor.shape[1:]

    def load(start: int, stop: int) -> PackedTensor:
        packed = tensor.load(number, number + 1)
        dims = packed.packer.stored(shape)
        fields = {name: value.reshape(dims[name][0]) for name, value in packed.fields.items()}
        return cut(PackedTensor(packed.packer, shape, fields), start, stop)

    matrix = replace(
        tensor,
        name=mapping.canonical,
        shape=shape,
        nbytes=tensor.nbytes // tensor.rows,
        load=load,
        step=tensor.packer.row_step(shape),
    )
    rows = mapping.shape[0]
    return matrix if rows == shape[0] else matrix.slice_rows(first, first + rows)
