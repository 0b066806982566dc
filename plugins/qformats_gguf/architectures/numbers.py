"""Numbers from untrusted files: a JSON configuration, or GGUF metadata."""

from __future__ import annotations

import math
from typing import Any

from qformats.errors import CheckpointError, ConfigError
from qformats_gguf.metadata import Metadata, ValueType

__all__ = ["config_number", "metadata_number"]

_NOT_NUMBERS = (ValueType.ARRAY, ValueType.STRING, ValueType.BOOL)
_FLOATS = (ValueType.F32, ValueType.F64)


def config_number(value: Any, key: str, source: str, *, whole: bool = False, zero: bool = False) -> None:
    """Raise `ConfigError` unless a value of ``config.json`` is a finite positive number.

    Parameters
    ----------
    whole : bool
        It must be an integer that fits u32.
    zero : bool
        Zero is allowed too.
    """
    good = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not good or not _in_range(value, 2**32 if whole else math.inf, zero):
        expected = f"a {'' if zero else 'positive '}{'whole ' if whole else ''}number"
        raise ConfigError(f"{source}: {key}", value, expected, "one value must hold for all layers")


def metadata_number(
    metadata: Metadata, key: str, source: str, *, whole: bool = False, zero: bool = False
) -> Any:
    """Read a finite positive number, None where the key is absent; else as `config_number`.

    Raises
    ------
    CheckpointError
        If the value is something else, an array for instance.
    """
    value = metadata.get(key)
    if value is None:
        return None
    good = value.type not in _NOT_NUMBERS and not (whole and value.type in _FLOATS)
    if not good or not _in_range(value.data, math.inf, zero):
        expected = f"one {'' if zero else 'positive '}{'whole ' if whole else ''}number for all layers"
        raise CheckpointError(source, f"{key} = {value.data!r}", expected)
    return int(value.data) if value.type not in _FLOATS else float(value.data)


def _in_range(value: Any, end: float, zero: bool) -> bool:
    return bool((value > 0 or (zero and value == 0)) and value < end)
