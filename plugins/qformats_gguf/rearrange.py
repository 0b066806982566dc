"""Tensors as GGUF keeps them, and back: rows in another order, experts stacked, norms with 1 added."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace

from qformats import PackedTensor, Packer, StoredTensor
from qformats.interfaces import cut, dense
from qformats_gguf.architectures import TensorMapping

__all__ = ["from_gguf", "stack_name", "to_gguf"]

_F32_BYTES = 4
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
    if mappings[0].stack:
        return [_expert(tensor, number, mapping) for number, mapping in enumerate(mappings)]
    ends = list(itertools.accumulate(mapping.shape[0] for mapping in mappings))
    found = []
    for mapping, end in zip(mappings, ends, strict=True):
        part = tensor if len(mappings) == 1 else tensor.slice_rows(end - mapping.shape[0], end)
        part = part.renamed(mapping.canonical)
        if mapping.permute is not None:
            part = part.take_rows(mapping.permute.inverse(part.rows))
        found.append(_shifted(part, -mapping.offset) if mapping.offset else part)
    return found


def _moved(tensor: StoredTensor, mapping: TensorMapping) -> StoredTensor:
    if mapping.permute is not None:
        tensor = tensor.take_rows(mapping.permute.rows(tensor.rows))
    return _shifted(tensor, mapping.offset) if mapping.offset else tensor


def _shifted(tensor: StoredTensor, amount: float) -> StoredTensor:
    """The same numbers plus a constant, added in float32 as upstream's converter does."""
    plain = dense("f32")

    def load(start: int, stop: int) -> PackedTensor:
        values = tensor.read(start, stop).dequantize().float() + amount
        return PackedTensor(plain, tuple(values.shape), {"weight": values})

    return replace(
        tensor,
        packer=plain,
        nbytes=tensor.numel * _F32_BYTES,
        load=load,
        origin=tensor.stored_packer if tensor.stored_format != plain.name else None,
    )


def _stacked(parts: Sequence[StoredTensor]) -> StoredTensor:
    """Matrices as one tensor of three dimensions, on their bytes if they are stored by rows and alike."""
    first = parts[0]
    alike = all(part.format == first.format for part in parts) and _by_rows(first.packer)
    packer = first.packer if alike else dense("f32")

    def load(start: int, stop: int) -> PackedTensor:
        import torch

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
        packer=packer,
        nbytes=sum(part.nbytes for part in parts),
        load=load,
        step=1,
        origin=None if alike else first.stored_packer,
        names=frozenset[str]().union(*(part.names for part in parts)),
        matrices=tuple(part.name for part in parts),
    )


def _by_rows(packer: Packer) -> bool:
    """Whether the bytes of matrices below each other are those of the stack."""
    return packer.family == "gguf" or not packer.quantizes


def _expert(tensor: StoredTensor, number: int, mapping: TensorMapping) -> StoredTensor:
    """One matrix of a stack."""
    shape = mapping.shape

    def load(start: int, stop: int) -> PackedTensor:
        packed = tensor.load(number, number + 1)
        dims = packed.packer.stored(shape)
        fields = {name: value.reshape(dims[name][0]) for name, value in packed.fields.items()}
        return cut(PackedTensor(packed.packer, shape, fields), start, stop)

    return replace(
        tensor,
        name=mapping.canonical,
        shape=shape,
        nbytes=tensor.nbytes // tensor.rows,
        load=load,
        step=tensor.packer.row_step(shape),
    )
