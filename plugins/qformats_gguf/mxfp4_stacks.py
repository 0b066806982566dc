"""Experts in MXFP4 as gpt-oss is published: stacks of bytes, made of the blocks of GGUF's type.

The inverse of what :mod:`qformats_gguf.mxfp4_folder` reads: byte ``j`` of a block holds the elements ``2j`` (low) and
``2j + 1``, rows of gate and up follow each other in turn, and exponents are a tensor of their own. No value is looked
at, so that a model that was read from such a folder has the same bytes again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from qformats import Checkpoint, PackedTensor, StoredTensor
from qformats.errors import ConfigError, Described
from qformats.folder import HuggingFaceFolder, Share, shares
from qformats.interfaces import Assignment, Draft, dense

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BLOCKS", "SCALES", "stacks"]

BLOCKS, SCALES = "_blocks", "_scales"
_FORMAT = "gguf:mxfp4"
_BLOCK_BYTES, _CODES = 17, 16
_STACKS = ("gate_up_proj", "down_proj")
_EXPERT = re.compile(r"(.*\.mlp\.experts\.)(\d+)\.(?:gate_proj|up_proj|down_proj)\.weight")


def stacks(assignments: Sequence[Assignment], source: Checkpoint) -> list[Assignment]:
    """The same with two stacks of bytes in place of the matrices of experts.

    Raises
    ------
    ConfigError
        If there are none, or one is in another format.
    """
    experts = {a.draft.name: a for a in assignments if _EXPERT.fullmatch(a.draft.name)}
    others = [a for a in assignments if a.draft.name not in experts]
    found = HuggingFaceFolder().joined(others, source)
    owners = dict.fromkeys(match[1] for name in experts if (match := _EXPERT.fullmatch(name)))
    for owner in owners:
        numbers = [
            int(match[2]) for name in experts if (match := _EXPERT.fullmatch(name)) and match[1] == owner
        ]
        for stack in _STACKS:
            parts = shares(f"{owner}{stack}", 1 + max(numbers), source.config)
            found += _stack(f"{owner}{stack}", parts, experts)
    if not owners:
        told = Described(f"a model of type {source.config.get('model_type')!r} without such experts")
        raise ConfigError("container", told, "experts that are stacked as those of gpt-oss, for mxfp4")
    return found


def _stack(name: str, parts: Sequence[Share], experts: Mapping[str, Assignment]) -> list[Assignment]:
    """Stacks of blocks, and of exponents."""
    lacking = [part.name for part in parts if part.name not in experts]
    if lacking or not parts or not (parts[0].turned and parts[0].alternating):
        told = Described(f"{lacking[0]}, which is missing" if lacking else f"{name}, stacked in another way")
        raise ConfigError("container", told, "the matrices of every expert, as gpt-oss has them, for mxfp4")
    tensors = [experts[part.name].draft.source for part in parts]
    odd = next((tensor for tensor in tensors if tensor.format != _FORMAT), None)
    if odd is not None:
        told = Described(f"{odd.name} in {odd.format}")
        hint = f"make a file first, --format {_FORMAT} -o MODEL.gguf, and then this folder of it"
        raise ConfigError("container", told, f"experts in {_FORMAT}, for mxfp4", hint)
    if len({tensor.shape for tensor in tensors}) > 1:
        told = Described(f"matrices of several shapes in {name}")
        raise ConfigError("container", told, "experts of one shape, for mxfp4")
    each = parts[0].parts
    matrices = [tensors[start : start + each] for start in range(0, len(tensors), each)]
    groups = tensors[0].shape[1] // 32
    shape = (len(matrices), each * tensors[0].rows, groups)
    return [
        _assignment(name + BLOCKS, matrices, (*shape, _CODES), _codes),
        _assignment(name + SCALES, matrices, shape, _exponents),
    ]


def _assignment(
    name: str,
    matrices: Sequence[Sequence[StoredTensor]],
    shape: tuple[int, ...],
    part_of: Callable[[Tensor], Tensor],
) -> Assignment:
    plain, first = dense("u8"), matrices[0][0]
    nbytes = 1
    for dim in shape:
        nbytes *= dim

    def load(start: int, stop: int) -> PackedTensor:
        import torch

        values = torch.empty((stop - start, *shape[1:]), dtype=torch.uint8)
        for number, parts in enumerate(matrices[start:stop]):
            for at, tensor in enumerate(parts):
                blocks = tensor.read().fields["blocks"].reshape(tensor.rows, -1, _BLOCK_BYTES)
                values[number, at :: len(parts)] = part_of(blocks)
        return PackedTensor(plain, tuple(values.shape), {"weight": values})

    names = frozenset[str]().union(*(tensor.names for parts in matrices for tensor in parts))
    source = replace(
        first,
        name=name,
        shape=shape,
        packer=plain,
        nbytes=nbytes,
        load=load,
        step=1,
        names=names,
        origin=None,
    )
    return Assignment(
        Draft(name, source, keep=plain.name, why="experts in MXFP4"), plain, "experts in MXFP4", kept=True
    )


def _exponents(blocks: Tensor) -> Tensor:
    return blocks[..., 0]


def _codes(blocks: Tensor) -> Tensor:
    """Bytes with neighbours in a byte, of bytes with elements that lie half a block apart."""
    import torch

    stored = blocks[..., 1:]
    elements = torch.cat([stored & 15, stored >> 4], -1)
    return elements[..., 0::2] | elements[..., 1::2] << 4
