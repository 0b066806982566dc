"""A model type that a row stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qformats_gguf.architectures.limits import Config, Problem

__all__ = ["HFModel"]


@dataclass(frozen=True)
class HFModel:
    """A Hugging Face model type that a row stands for: one whose model code computes what the row describes.

    Every key of its configuration class is in one of the mappings, in a rule of the row, or in
    ``keys.HARMLESS``; a key that is in none of them is refused.

    Attributes
    ----------
    architectures : tuple of str
        Model classes whose tensors the row describes.
    defaults : mapping
        What the model code assumes for keys that its configuration class has no default for.
    complete : callable, optional
        Adds to a normalized configuration, in place, what its model code makes of several keys.
    checks : tuple of callable
        Limits that take more than one key: return a `Problem` or None for a normalized configuration.
    judged : tuple of str
        Keys that only `checks` read.
    fixed : mapping
        Keys of the row that this type's model code ignores, and what it does instead; ``None`` if that follows from
        other keys.
    neutral : mapping
        Keys that the row leaves out, and the value with which they mean nothing; ``None`` for any value.
    aliases : mapping of str to str
        Other names for keys; where both are given, Transformers takes the value of the other name.
    old_names : mapping of str to str
        Keys, and what config.json calls them instead where the model's own code wrote it.
    theta : float
        Base of the rotary embedding where the configuration says nothing.
    within : mapping of str to str
        Types of models that contain one of this type beside a vision model, and their classes.
    """

    model_type: str
    architectures: tuple[str, ...]
    defaults: Config = field(default_factory=dict)
    complete: Callable[[dict[str, Any]], None] | None = None
    checks: tuple[Callable[[Config], Problem | None], ...] = ()
    judged: tuple[str, ...] = ()
    fixed: Config = field(default_factory=dict)
    neutral: Config = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    old_names: Mapping[str, str] = field(default_factory=dict)
    theta: float = 10000.0
    within: Mapping[str, str] = field(default_factory=dict)
