"""Keys of a file, and the keys of a configuration that they stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qformats_gguf.metadata import Value

__all__ = ["REQUIRED", "MetaRule"]


REQUIRED: Any = object()
"""Default of a metadata key that llama.cpp requires."""


@dataclass(frozen=True)
class MetaRule:
    """A metadata key and the configuration key that it stands for.

    Attributes
    ----------
    key : str
        Key after the ``ARCHITECTURE.`` prefix; one that begins with ``tokenizer.`` has none.
    make : callable
        Constructor of the typed value: `u32`, `f32`...
    config : str
        Key in the (normalized) configuration; or whole numbers and keys with operators between them, such as
        ``4 * hidden_size``, where nothing says the value and a file may hold no other.
    default : object
        What llama.cpp assumes if the key is absent: a constant, a function of the configuration
        collected so far, or `REQUIRED`.
    write : bool
        Whether upstream's converter writes the key for this architecture; it is read in any case.
    optional : bool
        Whether the configuration's value may be null, which is written as no key, or as the number `null`.
    zero : bool
        Whether the number may be 0.
    compared : bool
        Whether a file with another value than the computed one is refused.
    instead : str
        Key that older files have instead.
    """

    key: str
    make: Callable[[Any], Value]
    config: str
    default: Any = REQUIRED
    write: bool = True
    optional: bool = False
    zero: bool = False
    compared: bool = True
    instead: str = ""
    null: int | None = None

    def under(self, prefix: str) -> str:
        """The whole key, in a file whose keys begin with `prefix`."""
        return self.key if self.key.startswith("tokenizer.") else prefix + self.key

    @property
    def computed(self) -> bool:
        """Whether the value follows from the configuration's other keys."""
        return not self.config.isidentifier()
