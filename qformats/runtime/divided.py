"""Tensors that Transformers divides by rows into several parameters while it loads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qformats.interfaces.checkpoint import Checkpoint, ReplacedTensors
from qformats.interfaces.stored import StoredTensor

__all__ = ["divided"]


class _Divided(ReplacedTensors):
    """A model whose tensors are those of its class."""

    def __init__(self, source: Checkpoint, tensors: Mapping[str, StoredTensor]) -> None:
        super().__init__(source, {})
        self.tensors = dict(tensors)


def divided(source: Checkpoint, model: Any) -> Checkpoint:
    """A checkpoint with the parts of such tensors in their place, under the names that the class has for them.

    Whole rows stay as they are stored, so quantized ones do too.

    Examples
    --------
    >>> import qformats, torch
    >>> from qformats.folder.classes import new_model
    >>> from qformats.runtime.divided import divided
    >>> demo = qformats.open("demo")
    >>> with torch.device("meta"):
    ...     divided(demo, new_model(demo.config)) is demo
    True
    """
    from qformats.work.compat import WeightConverter, get_model_conversion_mapping

    mapping: Any = get_model_conversion_mapping(model)
    rules = [each for each in mapping if isinstance(each, WeightConverter) and _by_rows(each)]
    if not rules:
        return source
    renamings = [each for each in mapping if not isinstance(each, WeightConverter)]
    found: dict[str, StoredTensor] = {}
    for name, tensor in source.tensors.items():
        own = name
        for renaming in renamings:
            own, _ = renaming.rename_source_key(own)
        target, targets = next(filter(None, (_targets(rule, own) for rule in rules)), ("", []))
        if not targets or tensor.rows % len(targets):
            found[name] = tensor
            continue
        rows = tensor.rows // len(targets)
        for number, each in enumerate(targets):
            part = target.replace(targets[0], each)
            found[part] = tensor.slice_rows(number * rows, (number + 1) * rows).renamed(part)
    return _Divided(source, found)


def _by_rows(rule: Any) -> bool:
    kinds = [type(operation).__name__ for operation in rule.operations]
    return kinds == ["Chunk"] and rule.operations[0].dim == 0 and len(rule.source_patterns) == 1


def _targets(rule: Any, name: str) -> tuple[str, list[str]] | None:
    """The first parameter that a tensor becomes, and what each is called in its place."""
    target, pattern = rule.rename_source_key(name)
    return None if pattern is None else (target, list(rule.target_patterns))
