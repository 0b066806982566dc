"""What of a model one of the two sides does not compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Config", "Limit", "Problem"]


Config = Mapping[str, Any]
"""A Hugging Face ``config.json``."""


@dataclass(frozen=True)
class Limit:
    """A configuration key of which llama.cpp computes only some values.

    Attributes
    ----------
    allowed : tuple
        Values that are computed as Transformers does; an absent key counts as the first. Empty if only null is.
    reason : str
        What llama.cpp does instead.
    """

    key: str
    allowed: tuple[Any, ...]
    reason: str


@dataclass(frozen=True)
class Problem:
    """Something in a model that the other side does not compute.

    Attributes
    ----------
    key : str
        Configuration or metadata key.
    found : object
        Its value.
    supported : tuple of str
        Values that would have worked.
    reason : str
        What would go wrong; one sentence.
    """

    key: str
    found: Any
    supported: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        return f"{self.key} = {self.found!r} was ignored: {self.reason}"
