"""Where in a model each tensor of a checkpoint belongs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qformats.errors import CheckpointError, Described, UnsupportedModelError
from qformats.folder.experts import part_of, share_of
from qformats.folder.fit import predicts
from qformats.folder.skeleton import is_computed
from qformats.interfaces.checkpoint import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Place", "places"]

_STACKED = (["MergeModulelist"], ["MergeModulelist", "Concatenate"])
"""How Transformers combines the matrices of all experts into one parameter: stacked, some of them joined."""


@dataclass(frozen=True)
class Place:
    """Where a tensor belongs.

    Attributes
    ----------
    name : str
        Parameter or buffer of the model.
    expert : int or None
        Which matrix of a parameter that stacks those of all experts; None for other parameters.
    part, parts : int
        Which of the matrices joined in each expert's matrix, and of how many.
    label : str
        What the checkpoint calls that matrix within an expert, such as ``gate_proj``.
    turned : bool
        Whether the parameter holds matrices ``[in, out]``.
    alternating : bool
        Whether it holds the rows of joined matrices in turn.
    """

    name: str
    expert: int | None = None
    part: int = 0
    parts: int = 1
    label: str = ""
    turned: bool = False
    alternating: bool = False

    @property
    def is_bias(self) -> bool:
        """Whether it is one of the biases of experts."""
        return self.expert is not None and self.name.endswith("_bias")

    def within(self, values: Tensor) -> Tensor:
        """The part of a parameter's numbers that belongs to the tensor: a view, ``[out, in]`` of a matrix."""
        if self.expert is None:
            return values
        own = values[self.expert]
        return part_of(own, self.part, self.parts, turned=self.turned, alternating=self.alternating)


def places(source: Checkpoint, model: Any) -> dict[str, Place]:
    """Place of every tensor of a checkpoint in its model, by canonical name; without those that the model computes.

    Raises
    ------
    CheckpointError
        If a tensor does not belong to the model, or one that the model needs is missing.
    UnsupportedModelError
        If Transformers computes a parameter from several tensors in a way that is not known here.
    """
    wanted = model.state_dict()
    rules = _Rules(model, wanted, source.config)
    ignored = _patterns(getattr(model, "_keys_to_ignore_on_load_unexpected", None))
    buffers = {name for name, _ in model.named_buffers()}
    found: dict[str, Place] = {}
    for name, tensor in source.tensors.items():
        place = rules.place(name)
        if place.name in wanted:
            found[name] = place
        elif not (
            is_computed(name, model.base_model_prefix, buffers)
            or predicts(name, source.config)
            or any(pattern.search(name) for pattern in ignored)
        ):
            raise CheckpointError(
                tensor.file,
                f"is not known to {type(model).__name__}",
                "only tensors of this model",
                tensor=name,
                hint="it belongs to another model, or to an adapter, which must be merged first",
            )
    _require_all(source, model, wanted, found)
    return found


def _require_all(
    source: Checkpoint, model: Any, wanted: Mapping[str, Any], found: Mapping[str, Place]
) -> None:
    """Refuse a model with holes, which would be filled with random numbers."""
    given: dict[str, set[tuple[int, int]]] = {}
    parts: dict[str, int] = {}
    for place in found.values():
        given.setdefault(place.name, set()).add((place.expert or 0, place.part))
        parts[place.name] = place.parts if place.expert is not None else 0
    tied = tied_names(model)
    ignored = _patterns(getattr(model, "_keys_to_ignore_on_load_missing", None))
    for name, tensor in wanted.items():
        twins = {tied.get(name, name), *(target for target, home in tied.items() if home == name)}
        if name not in given and not twins & given.keys() and not any(p.search(name) for p in ignored):
            hint = "fetch the whole model again, with all its shards"
            raise CheckpointError(source.path, f"lacks {name}, which {type(model).__name__} needs", hint=hint)
        if parts.get(name):
            every = {(expert, part) for expert in range(tensor.shape[0]) for part in range(parts[name])}
            lacking = sorted(every - given[name])
            if lacking:
                expert, part = lacking[0]
                told = f"lacks part {part} of expert {expert} of {name} ({len(lacking)} matrices are missing)"
                raise CheckpointError(source.path, told, "the matrices of every expert")


def tied_names(model: Any) -> dict[str, str]:
    """Parameters that are tied to another one, and to which."""
    tied = getattr(model, "all_tied_weights_keys", None)
    return dict(tied) if isinstance(tied, Mapping) else {}


def _patterns(patterns: Iterable[str] | None) -> list[re.Pattern[str]]:
    return [re.compile(pattern) for pattern in patterns or ()]


class _Rules:
    """Transformers' own rules from names on disk to names of parameters; asked only where names differ."""

    def __init__(self, model: Any, wanted: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        self._model, self._wanted, self._config = model, wanted, config
        self._known: tuple[list[Any], list[Any]] | None = None

    def place(self, name: str) -> Place:
        if name in self._wanted:
            return Place(name)
        share = share_of(name, self._config)
        if share is not None:
            stack = self.place(share.stack)
            return replace(
                stack,
                expert=share.expert,
                part=share.part,
                parts=share.parts,
                label=share.label,
                turned=share.turned,
                alternating=share.alternating,
            )
        if self._known is None:
            self._known = self._load()
        renamings, converters = self._known
        for renaming in renamings:
            name, _ = renaming.rename_source_key(name)
        for converter in converters:
            target, pattern = converter.rename_source_key(name)
            if pattern is not None:
                return self._stacked(name, self._with_prefix(target), pattern, converter)
        return Place(self._with_prefix(name))

    def _load(self) -> tuple[list[Any], list[Any]]:
        from qformats.work.compat import WeightConverter, get_model_conversion_mapping

        mapping = get_model_conversion_mapping(self._model)
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        return [entry for entry in mapping if not isinstance(entry, WeightConverter)], converters

    def _with_prefix(self, name: str) -> str:
        """The name with the base model's prefix, or without it, as the model has it."""
        prefix = f"{self._model.base_model_prefix}."
        for other in (name.removeprefix(prefix), f"{prefix}{name}"):
            if name not in self._wanted and other in self._wanted:
                return other
        return name

    def _stacked(self, name: str, target: str, pattern: str, converter: Any) -> Place:
        operations = [type(operation).__name__ for operation in converter.operations]
        number = re.search(re.escape(pattern).replace(r"\*", r"(\d+)") + "$", name)
        if operations not in _STACKED or number is None or len(number.groups()) != 1:
            raise UnsupportedModelError(
                f"parameter {target} of {type(self._model).__name__}",
                Described(f"one made from {name} by {', '.join(operations)}"),
                ["stacked matrices of experts", "tensors that are stored as in the model"],
            )
        sources = list(converter.source_patterns)
        label = name.removesuffix(".weight").rpartition(".")[2]
        return Place(target, int(number[1]), sources.index(pattern), len(sources), label)
