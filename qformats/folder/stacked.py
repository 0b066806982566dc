"""Experts that a folder holds stacked, as Transformers holds them in memory, under the names they have on disk.

Most models keep the matrices of each expert by themselves on disk, and Transformers stacks them while it loads. It also
loads folders with what it has in memory, which some tools write; here both are the same tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from qformats.interfaces.packer import PackedTensor
from qformats.interfaces.rows import cut
from qformats.interfaces.stored import StoredTensor

__all__ = ["apart"]

_STACK = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)(?:\.weight)?")
_CONVERTED = (["MergeModulelist"], ["MergeModulelist", "Concatenate"])
"""What Transformers does with matrices on disk that it stacks."""
_TOLD = (
    "experts have the form and the names that Transformers gives them in memory: read as those that it writes"
)
_PLAIN = re.compile(r"[\w.\\]+")
"""A pattern that is a name."""


def apart(
    tensors: Mapping[str, StoredTensor], config: Mapping[str, Any]
) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    """Tensors under their names on disk, and what is to be said about that.

    Parameters
    ----------
    tensors : mapping of str to StoredTensor
        Of a folder.
    config : mapping
        Its config.json, whose ``model_type`` tells which names these are.
    """
    stacks = [
        match
        for name, tensor in tensors.items()
        if len(tensor.shape) == 3 and (match := _STACK.fullmatch(name))
    ]
    if not any(_as_in_memory(tensors, match[1]) for match in stacks):
        return dict(tensors), ()
    owners = tuple(match[1].rpartition(".")[0] + "." for match in stacks)
    converters, renamings = _conversions(config)
    if not converters and not renamings:
        return dict(tensors), ()
    found: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        sources = next((s for target, s in converters if name.removesuffix(".weight").endswith(target)), None)
        own = list(_matrices(name, tensor, sources)) if sources and len(tensor.shape) == 3 else [tensor]
        for part in own:
            disk = _renamed(part.name, renamings) if name.startswith(owners) else part.name
            found[disk] = part.renamed(disk)
    return found, (_TOLD,)


def _as_in_memory(tensors: Mapping[str, StoredTensor], owner: str) -> bool:
    """Whether these stacks are of ``[out, in]`` matrices: others, such as gpt-oss's, are so on disk too."""
    shapes = []
    for parameter in ("gate_up_proj", "down_proj"):
        tensor = tensors.get(f"{owner}.{parameter}") or tensors.get(f"{owner}.{parameter}.weight")
        if tensor is None:
            return False
        shapes.append(tensor.shape)
    (_, rows, columns), (_, outputs, inner) = shapes
    return rows == 2 * inner and columns == outputs


def _conversions(config: Mapping[str, Any]) -> tuple[list[tuple[str, list[str]]], list[tuple[str, str]]]:
    """Endings of stacks with those of the matrices in them, and names in memory with those on disk."""
    from qformats.work.compat import WeightConverter, WeightRenaming, get_checkpoint_conversion_mapping

    text = config.get("text_config")
    kinds = [config.get("model_type"), text.get("model_type") if isinstance(text, Mapping) else None]
    get: Any = get_checkpoint_conversion_mapping
    entries = [entry for kind in kinds if isinstance(kind, str) for entry in get(kind) or ()]
    converters, renamings = [], []
    for entry in entries:
        sources, targets = list(entry.source_patterns), list(entry.target_patterns)
        if isinstance(entry, WeightConverter):
            kind = [type(operation).__name__ for operation in entry.operations]
            if kind in _CONVERTED and len(targets) == 1 and ".experts" in targets[0]:
                converters.append((targets[0], [source.rpartition(".experts.")[2] for source in sources]))
        elif type(entry) is WeightRenaming and len(sources) == len(targets) == 1:
            if _PLAIN.fullmatch(sources[0]) and _PLAIN.fullmatch(targets[0]):
                renamings.append((targets[0].replace("\\", ""), sources[0].replace("\\", "")))
    return converters, renamings


def _renamed(name: str, renamings: list[tuple[str, str]]) -> str:
    for memory, disk in reversed(renamings):
        name = name.replace(memory, disk)
    return name


def _matrices(name: str, tensor: StoredTensor, sources: list[str]) -> Iterator[StoredTensor]:
    """The matrices in a stack, part by part of each expert."""
    owner = _STACK.fullmatch(name)
    assert owner is not None
    experts, rows, columns = tensor.shape
    shape = (rows // len(sources), columns)
    for number in range(experts):
        for part, source in enumerate(sources):

            def load(
                start: int, stop: int, number: int = number, first: int = part * shape[0]
            ) -> PackedTensor:
                packed = tensor.load(number, number + 1)
                fields = {key: value.reshape(rows, columns) for key, value in packed.fields.items()}
                return cut(PackedTensor(packed.packer, (rows, columns), fields), first + start, first + stop)

            yield replace(
                tensor,
                name=f"{owner[1]}.{source.replace('*', str(number))}",
                shape=shape,
                nbytes=tensor.nbytes // experts // len(sources),
                load=load,
            )
