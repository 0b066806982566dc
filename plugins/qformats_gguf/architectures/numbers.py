"""Numbers from untrusted files: a JSON configuration, or GGUF metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qformats.interfaces import Values
from qformats_gguf.metadata import Keys, Metadata

__all__ = ["config_number", "metadata_number", "sizes"]

_HINT = "one value must hold for all layers"
_U32_MAX = 2**32 - 1
_F32_MAX = 3.4028234e38


def config_number(
    value: Any, key: str, source: str, *, whole: bool = False, zero: bool = False, largest: float = _F32_MAX
) -> None:
    """Raise `CheckpointError` unless a value of ``config.json`` is a finite positive number.

    Parameters
    ----------
    whole : bool
        It must be an integer that fits u32.
    zero : bool
        Zero is allowed too.
    largest : float
        What a number that is not `whole` may be; by default what float32 can hold, in which both sides keep most.
    """
    _number(Values({key: value}, source), key, whole, zero, largest)


def metadata_number(
    metadata: Metadata, key: str, source: str, *, whole: bool = False, zero: bool = False
) -> Any:
    """Read a finite positive number, None where the key is absent; else as `config_number`.

    Raises
    ------
    CheckpointError
        If the value is something else, an array for instance.
    """
    keys = Keys(metadata, source)
    return _number(keys, key, whole, zero, _F32_MAX) if key in keys else None


def sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """Whole numbers of a configuration. Flags are whole numbers too, but never dimensions."""
    return {k: v for k, v in config.items() if isinstance(v, int) and not isinstance(v, bool)}


def _number(values: Values, key: str, whole: bool, zero: bool, largest: float) -> Any:
    given = values.get(key)
    hint = _HINT if isinstance(given, list) else None
    if whole:
        return values.integer(key, minimum=0 if zero else 1, maximum=_U32_MAX, hint=hint)
    least = {"minimum": 0.0} if zero else {"above": 0.0}
    found = values.number(key, maximum=largest, hint=hint, **least)
    return given if isinstance(given, int) else found
